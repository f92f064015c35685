"""Progress where there is no terminal: all items pass, and a line tells how far and how long."""

from __future__ import annotations

import pytest

from clinfuse import console


def test_a_log_gets_lines_and_every_item(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    assert list(console.progress(range(3), total=3, label="cases")) == [0, 1, 2]
    told = capsys.readouterr().err
    assert "cases: 2 of 3, about 0 s left" in told and told.count("cases:") == 3
    monkeypatch.setattr(console, "LINE_SECONDS", 30.0)
    assert list(console.progress(iter("ab"), label="parts")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_one_of_a_thing_is_not_many() -> None:
    assert [console.counted(number, "case") for number in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
