"""The demo's parts without Ray: journal and resume, memory of a process tree, the served child, sizes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clinfuse_platform.demo import SIZES, add_arguments, chosen_size, command_lines
from clinfuse_platform.demo_journal import open_journal
from clinfuse_platform.demo_serving import free_port, serving
from clinfuse_platform.memory import MemorySampler, tree_bytes
from clinfuse_platform.verb_table import build_parser, load_verb

from clinfuse.errors import ClinfuseError, ConfigError

SETTINGS = {"recipe": "cpu-debug", "patients": 6}


def test_a_step_is_done_once_and_resumed_after(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(name: str) -> dict[str, object]:
        calls.append(name)
        return {"result": name, "folder": tmp_path}

    with MemorySampler(0.1) as memory:
        journal = open_journal(tmp_path / "out", SETTINGS, resume=False)
        journal.do("one", "clinfuse one 'a b'", lambda: work("one"), memory)
        again = open_journal(tmp_path / "out", SETTINGS, resume=True)
        first = again.do("one", "clinfuse one", lambda: work("one"), memory)
        again.do("two", "", lambda: work("two"), memory)
    assert calls == ["one", "two"] and first["result"] == "one"
    saved = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [s["title"] for s in saved["steps"]] == ["one", "two"]
    assert saved["steps"][0]["command"] == "clinfuse one 'a b'"
    assert saved["peak_gb"] > 0 and saved["seconds"] >= 0 and "Research use only" in saved["notice"]


def test_a_demo_that_ended_in_its_first_step_goes_on(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "out", SETTINGS, resume=True)
    (journal.folder / "half").write_text("x")
    assert open_journal(tmp_path / "out", SETTINGS, resume=True).records == []
    with pytest.raises(ConfigError, match=r"found a demo.*--resume"):
        open_journal(tmp_path / "out", SETTINGS, resume=False)


def test_every_step_goes_on_in_what_it_left(tmp_path: Path) -> None:
    """By itself, or by --resume where its verb has that; the line is one that its verb understands."""
    arguments = build_parser(load_verb("demo")).parse_args(["--recipe", "cpu-debug"])
    lines = command_lines(tmp_path / "a b", chosen_size(arguments), "cpu-debug")
    for line in lines.values():
        _, name, *words = shlex.split(line)
        assert getattr(build_parser(load_verb(name)).parse_args(words), "resume", True), line
    assert sum(line.endswith(" --resume") for line in lines.values()) == 2


def test_a_failed_step_is_not_recorded(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "out", SETTINGS, resume=False)
    with MemorySampler() as memory, pytest.raises(ZeroDivisionError):
        journal.do("one", "", lambda: {"x": 1 / 0}, memory)
    assert open_journal(tmp_path / "out", SETTINGS, resume=True).records == []


def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        open_journal(tmp_path, SETTINGS, resume=False)
    with pytest.raises(ConfigError, match="not empty"):
        open_journal(tmp_path, SETTINGS, resume=True)
    assert open_journal(tmp_path / "new", SETTINGS, resume=True).records == []


def test_resuming_with_other_settings_is_refused_and_both_are_shown(tmp_path: Path) -> None:
    with MemorySampler() as memory:
        open_journal(tmp_path / "out", SETTINGS, resume=False).do("one", "", dict, memory)
    with pytest.raises(ConfigError, match=r'"patients": 6.*"patients": 8'):
        open_journal(tmp_path / "out", {**SETTINGS, "patients": 8}, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        open_journal(tmp_path / "out", SETTINGS, resume=False)


def test_memory_counts_children_and_shared_pages_once() -> None:
    before = tree_bytes()
    code = (
        "x = bytearray(200_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint(1, flush=True)\ninput()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        grown = tree_bytes() - before
    finally:
        child.kill()
        child.communicate()
    assert 195e6 < grown < 260e6


def test_processor_time_includes_children_that_ended() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ninput()"
    with MemorySampler(0.1) as memory:
        memory.sample()
        before, own = memory.cpu_seconds, time.process_time()
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        memory.sample()
        child.kill()
        child.communicate()
        memory.sample()
        grown = memory.cpu_seconds - before - (time.process_time() - own)
    assert grown > 0.4, "what this process did meanwhile is taken off"


def test_memory_is_sampled_while_work_goes_on() -> None:
    with MemorySampler(0.01) as memory:
        while len(memory.samples) < 3:  # without samples the test never ends
            time.sleep(0.01)
    assert memory.peak() == max(gb for _, gb in memory.samples)
    assert memory.peak(since=1e9) == 0.0


def test_size_comes_from_the_recipe_and_impossible_ones_are_refused(tmp_path: Path) -> None:
    parser = build_parser(load_verb("demo"))
    assert chosen_size(parser.parse_args(["--recipe", "cpu-debug"])) == SIZES["cpu-debug"]
    assert chosen_size(parser.parse_args(["--patients", "7"])).patients == 7
    for words in (["--patients", "5"], ["--spacing", "0.5"], ["--spacing", "9"], ["--trials", "0"]):
        with pytest.raises(ConfigError, match="patients >= 6"):
            chosen_size(parser.parse_args(words))
    assert add_arguments is load_verb("demo").add_arguments


def test_a_service_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    words = ["--port", str(free_port()), "--no-such-option"]
    with (
        pytest.raises(ClinfuseError, match=r"the service ended with code 2.*no-such-option"),
        serving(words, address="127.0.0.1:1", log=log),
    ):
        pass
    assert log.is_file()
