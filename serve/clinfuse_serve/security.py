"""Who may ask: tokens compared in constant time, loopback unless a token file is given, closed browser headers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path

from clinfuse.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16
OPEN_PATHS = frozenset({"/", "/study", "/healthz"})
OPEN_PREFIX = "/viewer/"  # scripts and styles of the pages; they hold no data


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable from this machine only; an unknown name counts as not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: str | Path) -> str:
    """The token in a file: its first line.

    Raises:
        ConfigError: no such file, or a token of fewer than 16 characters or with blanks.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the token file cannot be read",
            expected="a text file with one token",
            found=type(error).__name__,
            todo="make one: python -c 'import secrets; print(secrets.token_urlsafe())' > FILE; chmod 600 FILE",
        ) from error
    return check_token(lines[0].strip() if lines else "")


def check_token(token: str) -> str:
    """The token itself, if it is fit for use.

    Raises:
        ConfigError: shorter than 16 characters, or with characters that no header may carry.
    """
    if len(token) < MIN_TOKEN_CHARACTERS or not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(
            "the token is not usable",
            expected=f"at least {MIN_TOKEN_CHARACTERS} printable ASCII characters without blanks",
            found=f"{len(token)} characters",
            todo="python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return token


def require_token_beyond_loopback(host: str, token: str | None) -> None:
    """Refuse to start a service that others could reach and nobody guards.

    Raises:
        ConfigError: the address is not loopback and there is no token.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            "the service would be open to the network without a token",
            expected="a loopback address, or a token file",
            found=f"host {host!r} and no token file",
            todo="give --token-file FILE, or bind to 127.0.0.1",
        )


def token_digest(token: str) -> str:
    """SHA-256 of the token, hexadecimal: all that a replica keeps of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_open(path: str) -> bool:
    """Whether a path needs no token: the pages themselves and the health check."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def authorized(header: str | None, digest: str | None) -> bool:
    """Whether an Authorization header carries the token with this digest; True where no token is asked."""
    if digest is None:
        return True
    scheme, _, value = (header or "").partition(" ")
    given = hashlib.sha256(value.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return hmac.compare_digest(given, digest) and scheme.lower() == "bearer"


def foreign_origin(origin: str | None, host: str | None) -> bool:
    """Whether a browser sent this request from another site's page (CORS stays closed)."""
    return origin is not None and origin.partition("://")[2].lower() != (host or "").lower()


def foreign_host(host: str | None, loopback_only: bool) -> bool:
    """Whether a loopback service is addressed by a name that is not this machine's (DNS rebinding)."""
    if not loopback_only or not host:
        return False
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return not is_loopback(name)


SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
