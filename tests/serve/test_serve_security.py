"""Who may ask: tokens, addresses, browser headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from clinfuse_serve import security

from clinfuse.errors import ConfigError

TOKEN = "a-token-of-20-letters"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_only_loopback_needs_no_token(host: str, loopback: bool) -> None:
    assert security.is_loopback(host) is loopback
    security.require_token_beyond_loopback(host, TOKEN)
    if loopback:
        security.require_token_beyond_loopback(host, None)
    else:
        with pytest.raises(ConfigError, match="token"):
            security.require_token_beyond_loopback(host, None)


def test_token_file_is_read_and_weak_tokens_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nsecond line\n")
    assert security.read_token(file) == TOKEN
    for text in ("", "short", "with blank inside it all", "ümlaut-ümlaut-ümlaut"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="token is not usable"):
            security.read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        security.read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("header", "right"),
    [(f"Bearer {TOKEN}", True), (f"bearer {TOKEN}", True), (f"Basic {TOKEN}", False), (TOKEN, False)],
)
def test_authorization_header(header: str, right: bool) -> None:
    assert security.authorized(header, security.token_digest(TOKEN)) is right
    assert security.authorized(None, None)
    assert not security.authorized(None, security.token_digest(TOKEN))
    assert not security.authorized(f"Bearer {TOKEN}x", security.token_digest(TOKEN))


def test_foreign_pages_and_names_are_seen() -> None:
    assert not security.foreign_origin(None, "127.0.0.1:8000")
    assert not security.foreign_origin("http://127.0.0.1:8000", "127.0.0.1:8000")
    assert security.foreign_origin("http://evil.example", "127.0.0.1:8000")
    assert security.foreign_origin("null", "127.0.0.1:8000")
    assert not security.foreign_host("localhost:8000", True)
    assert not security.foreign_host("[::1]:8000", True)
    assert security.foreign_host("evil.example:8000", True)
    assert not security.foreign_host("clinic.example:8000", False)
