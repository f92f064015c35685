"""The pages: closed to other sites, with the licences of what they bring along."""

from __future__ import annotations

from clinfuse_serve import pages


def test_pages_need_nothing_from_elsewhere() -> None:
    own = {path: page for path, page in pages.pages().items() if not path.startswith("vendor/")}
    assert {"viewer.html", "study.html", "viewer.js", "style.css"} <= set(own)
    for path, page in own.items():
        text = page.data.decode()
        for foreign in (
            "http://",
            "https://",
            "//cdn",
            "@import",
            "style=",
            "onclick=",
            "eval(",
            "innerHTML",
        ):
            assert foreign not in text, (path, foreign)
        if path.endswith(".html"):
            assert "Research use only" in text and "<style" not in text
    assert "unsafe" not in pages.POLICY and "script-src 'self'" in pages.POLICY


def test_vendored_niivue_comes_with_its_licences() -> None:
    found = pages.pages()
    assert 500_000 < len(found["vendor/niivue.js"].data) < 1_000_000
    licences = found["vendor/LICENSES.txt"].data.decode()
    assert "BSD 2-Clause" in licences and "gl-matrix" in licences
