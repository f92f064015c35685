"""README is true: its map names files that exist and leaves no folder out, its commands are commands."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from clinfuse_platform.verb_table import build_parser, load_verb, verb_entries

from clinfuse.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def mapped_paths() -> list[str]:
    """Paths of the map; an indented name lies in the last folder that was not indented."""
    block = README.split("## The map")[1].split("```")[1]
    paths, folder = [], ""
    for line in block.splitlines():
        if not line.strip() or line.startswith(" " * 8):
            continue
        names = re.split(r"\s{2,}", line.strip())
        heads = names if line.startswith("README") else names[:1]
        for name in (part.strip() for head in heads for part in head.split(",")):
            paths.append((folder if line.startswith(" ") else "") + name)
        if not line.startswith(" ") and names[0].endswith("/"):
            folder = names[0]
    return paths


@pytest.mark.parametrize("path", mapped_paths())
def test_map_names_what_exists(path: str) -> None:
    assert (ROOT / path).exists()
    assert path.endswith("/") == (ROOT / path).is_dir()


def test_map_leaves_no_package_folder_out() -> None:
    rooms = (
        "clinfuse",
        "data_prep/clinfuse_prep",
        "platform",
        "sweeps/clinfuse_sweeps",
        "serve/clinfuse_serve",
    )
    folders = {
        f"{folder.relative_to(ROOT)}/"
        for room in rooms
        for folder in (ROOT / room).iterdir()
        if folder.is_dir() and not folder.name.startswith(("__", "."))
    }
    missing = {folder for folder in folders if not any(path.startswith(folder) for path in mapped_paths())}
    assert not missing - {"clinfuse/released/"}


def pages() -> dict[str, str]:
    """Every text that tells commands, by its path; commands that go on in the next line in one."""
    names = ["README.md", "Makefile", "cluster.yaml", "sweeps/README.md", "platform/docker/Dockerfile"]
    folders = ("docs/*.md", "platform/clusters/*.yaml", "serve/*.yaml", "tests/benchmarks/results/*.md")
    files = [ROOT / name for name in names] + [path for pattern in folders for path in ROOT.glob(pattern)]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    return {name: re.sub(r"\s*\\?\n[\s#]*(?=--\w)", " ", text) for name, text in texts.items()}


def lines_of(name: str, text: str) -> list[str]:
    """What can be a command: lines of a Markdown page's blocks and its words in backticks; else every line."""
    if not name.endswith(".md"):
        return text.splitlines()
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    words = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return "\n".join(blocks).splitlines() + [" ".join(word.split()) for word in words]


def commands_of(name: str, text: str) -> list[str]:
    """Every `clinfuse VERB WORD…`, whatever hands it on (`ray exec`, `ray job submit`), without the remark after it."""
    found = [re.search(r"(?:^|[\s'/])(clinfuse [a-z-]+ [^']+)", line) for line in lines_of(name, text)]
    lines = [re.split(r"\s{2,}|\s#|\s&&|;|$", match[1])[0].strip() for match in found if match]
    return [line for line in dict.fromkeys(lines) if line.split()[1] in verb_entries()]


COMMANDS = [(name, line) for name, text in sorted(pages().items()) for line in commands_of(name, text)]


def understood(line: str) -> argparse.Namespace:
    """The command's arguments, by its verb's parser; of an elided one ("…") only the options are looked at."""
    _, name, *words = shlex.split(line)
    parser = build_parser(load_verb(name))
    if "…" not in words:
        return parser.parse_args(words)
    unknown = [word for word in words if word.startswith("--") and word not in parser.format_help()]
    assert not unknown, f"clinfuse {name} has no {', '.join(unknown)}"
    return argparse.Namespace()


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_is_understood(page: str, line: str) -> None:
    arguments, verb = understood(line), load_verb(line.split()[1])
    if verb.check is not None and verb.name in ("prep", "doctor") and "…" not in line:
        verb.check(arguments)  # of the words alone; other verbs' look at files


def test_commands_are_found_wherever_they_are_told() -> None:
    told = {page for page, _ in COMMANDS}
    assert {"README.md", "Makefile", "cluster.yaml", "docs/cluster.md", "sweeps/README.md"} <= told
    assert {
        "platform/clusters/job.yaml",
        "platform/clusters/kuberay-sweep-job.yaml",
        "serve/study.yaml",
    } <= told
    (sweep,) = [line for page, line in COMMANDS if page.endswith("kuberay-sweep-job.yaml")]
    assert sweep.endswith("--resume"), "to its last word"


def on_a_cluster() -> list[str]:
    """Whole commands of the pages that tell what to type on a cluster's head."""
    texts = pages()
    section = texts["README.md"].split("## On a cluster")[1].split("\n## ")[0]
    told = {"README.md": section} | {name: texts[name] for name in ("cluster.yaml", "docs/cluster.md")}
    return [line for name, text in told.items() for line in commands_of(name, text) if "…" not in line]


@pytest.mark.parametrize("line", on_a_cluster())
def test_command_on_a_cluster_names_it(line: str) -> None:
    """Without an address a verb starts Ray for itself, and the cluster stands idle."""
    arguments = understood(line)
    if load_verb(line.split()[1]).needs_ray or getattr(arguments, "cluster", False):
        assert arguments.address


@pytest.mark.parametrize(
    "line",
    [
        "clinfuse prep s3://BUCKET/cohort --out d.zarr",
        "clinfuse prep cohort --out s3://BUCKET/d.zarr",
        "clinfuse doctor --cluster",
    ],
)
def test_command_that_cannot_work_is_caught(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError):
        test_command_is_understood("", line)


def test_readme_says_what_must_be_said() -> None:
    for words in ("Research use only", "Apache-2.0", "make demo", "make test", "ray up cluster.yaml", "curl"):
        assert words in README
    assert not re.search(r"/(work|root|home)/", README)
