"""The command: exit codes, clean errors, JSON on stdout, verbs loaded one at a time."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from clinfuse_platform import cli
from clinfuse_platform.doctor import Check, check_ray, show
from clinfuse_platform.verb_table import build_parser, load_verb, run_verb, verb_entries

from clinfuse.errors import ClinfuseError, ConfigError, InputError
from clinfuse.verbs import Verb


def test_help_lists_every_verb_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in verb_entries():
        assert f"  {name} " in text
    assert "Research use only" in text


def test_every_declared_verb_loads_and_has_its_own_name() -> None:
    for name in verb_entries():
        verb = load_verb(name)
        assert verb.name == name
        build_parser(verb)


@pytest.mark.parametrize("words", [[], ["nosuch"], ["doctor", "--no-such-option"], ["doctor", "--qui"]])
def test_wrong_use_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == cli.WRONG_USE
    assert capsys.readouterr().err


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["docter"])
    assert "doctor" in capsys.readouterr().err


def test_doctor_finds_what_is_needed_and_writes_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["doctor", "--quick", "--json", "--storage", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["status"] for check in result["checks"]}
    assert states["torch"] == states["ray"] == states["python"] == states["storage"] == "ok"


def test_doctor_names_what_is_broken_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quick", "--json", "--storage", "/proc/nowhere"]) == 1
    seen = capsys.readouterr()
    storage = next(check for check in json.loads(seen.out)["checks"] if check["name"] == "storage")
    assert storage["status"] == "broken" and "cannot be written" in storage["found"] and storage["todo"]
    assert "Research use only" in seen.err


def test_doctor_asks_the_cluster_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    check = check_ray("127.0.0.1:9")
    assert check.status == "broken" and "no Ray cluster answers" in check.found and "ray start" in check.todo
    show([Check(name="brain", status="missing", found="none", todo="pip install 'clinfuse[brain]'")])
    assert "[brain]" in capsys.readouterr().err


def test_a_check_refuses_before_a_session_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    words = ["train", str(tmp_path / "none.zarr"), "--run", "x", "--storage", str(tmp_path)]
    assert cli.main(words) == cli.FAILED
    assert "no dataset at this path" in capsys.readouterr().err and not ray.is_initialized()


def test_our_own_last_word_counts() -> None:
    inner, outer = InputError("no such model"), InputError("neither a model nor a baseline")
    outer.__cause__ = inner
    assert cli.our_error(outer) is outer


def test_our_error_is_found_inside_a_wrapped_one() -> None:
    inner = InputError("constant image", case="c1")
    outer = RuntimeError("task failed")
    outer.__cause__ = inner
    assert cli.our_error(outer) is inner
    assert cli.our_error(RuntimeError("other")) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [(ClinfuseError("lost"), 1), (InputError("bad"), 1), (ConfigError("wrong"), 2), (KeyError("x"), 1)],
)
def test_errors_are_one_clear_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.report_error(error) == code
    text = capsys.readouterr().err
    assert text.startswith("clinfuse: ") and "Traceback" not in text


def test_lost_cases_make_exit_1_although_the_result_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.report_result({"result": Path("out"), "lost": 2}, as_json=False) == 1
    seen = capsys.readouterr()
    assert seen.out == "out\n" and "2" in seen.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "run the same command again to go on"),
        ({"resume": True}, "run the same command again to go on"),
        ({"resume": False}, "run the same command again with --resume to go on"),
        (
            {"resume": False, "overwrite": True},
            "run the same command again with --resume instead of --overwrite to go on",
        ),
        ({"resume": False, "plan": True}, "nothing was written"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    given: dict[str, bool], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: argparse.Namespace) -> dict[str, object]:
        raise KeyboardInterrupt

    verb = Verb(name="x", help="", add_arguments=lambda parser: parser.set_defaults(**given), run=interrupted)
    assert cli._run(verb, build_parser(verb).parse_args([])) == cli.INTERRUPTED
    assert f"clinfuse: interrupted; {told}\n" in capsys.readouterr().err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.report_result({"a": [math.nan, 1.5], "p": Path("x")}, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "p": "x"}


def test_run_verb_from_code(tmp_path: Path) -> None:
    result = run_verb("doctor", ["--quick", "--storage", str(tmp_path)])
    assert result["lost"] == 0


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    code = "import sys; from clinfuse_platform.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "ray", "monai", "diffusers", "nilearn", "SimpleITK"}


def test_parser_has_the_common_options() -> None:
    parsed = build_parser(load_verb("doctor")).parse_args(["--json", "--address", "auto"])
    assert isinstance(parsed, argparse.Namespace)
    assert parsed.json and parsed.address == "auto" and not parsed.traceback
