"""What a verb cannot do is said before a Ray session starts and before any work."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import IO

import pytest
from clinfuse_platform import cli
from clinfuse_platform.evaluate_verb import add_arguments, check_asked

NOWHERE = "/proc/nowhere"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command, which must not have started a session."""
    import ray

    code = cli.main(words)
    assert not ray.is_initialized()
    return code, capsys.readouterr().err


def asked(words: list[str]) -> argparse.Namespace:
    """The arguments of `clinfuse evaluate`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_a_place_that_cannot_be_written_is_refused_first(
    model: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    for verb, words in (("evaluate", ["max"]), ("ablate", [str(model)])):
        for place in (NOWHERE, str(tmp_path / "mine")):
            code, told = refused([verb, *words, "--data", str(tiny_store), "--out", place], capsys)
            assert code == cli.WRONG_USE and "--out cannot be used" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_card_that_cannot_be_put_into_the_model_is_refused_first(
    model: Path,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The refusal is the system's: permissions do not bind the root user that tests may run as."""
    ordinary = tempfile.TemporaryFile

    def read_only(*, dir: Path) -> IO[bytes]:
        if dir == model:
            raise PermissionError(13, "read-only")
        return ordinary(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    words = [str(model), "--data", str(tiny_store), "--out", str(tmp_path / "out")]
    check_asked(asked(words))
    for wanted in (words, [*words, "--recipe", "aanlib"]):
        code, told = refused(["evaluate", *wanted, "--card"], capsys)
        assert code == cli.WRONG_USE and "model's folder" in told and "PermissionError" in told
    check_asked(asked(["max", *words[1:], "--card"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["--preset", "nosuch"], "nosuch", cli.WRONG_USE),
        (["--looks", "0"], "--looks is too small", cli.WRONG_USE),
        (["--slices", "0"], "--slices is too small", cli.WRONG_USE),
        (["--seed", "-1"], "--seed is too small", cli.WRONG_USE),
        (["--steps", "0"], "steps out of range", cli.WRONG_USE),
        (["--steps", "100000"], "steps out of range", cli.WRONG_USE),
        (["--data", "none.zarr"], "no dataset at this path", cli.FAILED),
    ],
)
def test_impossible_calibrations_are_refused(
    words: list[str],
    told: str,
    code: int,
    model: Path,
    tiny_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, error = refused(["calibrate", str(model), "--data", str(tiny_store), *words], capsys)
    assert found == code and told in error
    assert not (model / "calibration.json").exists()


def test_a_model_or_cases_that_are_not_there_are_refused(
    model: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = refused(["calibrate", "nosuch", "--data", str(tiny_store)], capsys)
    assert "no such model" in told
    bare = tmp_path / "bare.zarr"
    shutil.copytree(tiny_store, bare)
    for name in ("d", "e"):
        shutil.rmtree(bare / "cases" / (name * 6))
    _, told = refused(["calibrate", str(model), "--data", str(bare)], capsys)
    assert "no cases of split val" in told
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    weights = next((damaged / "denoiser").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    code, told = refused(["calibrate", str(damaged), "--data", str(tiny_store)], capsys)
    assert code == cli.FAILED and "denoiser" in told
