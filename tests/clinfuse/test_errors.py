"""Errors in reports: ours in full, others by kind and place; no path can get in."""

from __future__ import annotations

from pathlib import Path

from clinfuse.errors import InputError, describe
from clinfuse.evaluation import failed_rows
from clinfuse.evaluation.rows import RowMaker


def read() -> list[dict[str, object]]:
    raise FileNotFoundError("/nowhere/Smith_John.nii")


def test_errors_are_told_without_paths() -> None:
    try:
        Path("/nowhere/Smith_John.nii").read_bytes()
    except OSError as error:
        assert describe(error) == "FileNotFoundError in open"
        (row,) = failed_rows("a", "theirs", "balanced", error)
        assert row["status"] == "failed: FileNotFoundError in open"
    assert describe(InputError("wrong", case="a")) == "case a: wrong"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_metric_that_fails_tells_no_path_either() -> None:
    rows = RowMaker(case_id="a", method="m", preset="").guarded([("ssim", "brain"), ("ssim", "bone")], read)
    assert [row["status"] for row in rows] == ["failed: FileNotFoundError in read"] * 2
