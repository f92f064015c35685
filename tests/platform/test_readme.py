"""README is true: its map names files that exist and leaves no folder out, its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from clinfuse_platform.verb_table import build_parser, load_verb, verb_entries

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


def commands() -> list[str]:
    """Every `clinfuse VERB …` of the code blocks and of the running text, of README and the cluster's page."""
    text = README + (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:\.venv/bin/)?clinfuse \w[^`]*)`", text)
    found = [line.split("  #")[0].split(" # ")[0].strip() for line in lines + inline]
    found = [line.removeprefix(".venv/bin/") for line in found]
    return sorted({line for line in found if line.startswith("clinfuse ") and "…" not in line})


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line: str) -> None:
    _, name, *words = shlex.split(line)
    if name.startswith("--"):
        return
    assert name in verb_entries()
    if words:
        build_parser(load_verb(name)).parse_args(words)


def test_readme_says_what_must_be_said() -> None:
    for words in ("Research use only", "Apache-2.0", "make demo", "make test", "ray up cluster.yaml", "curl"):
        assert words in README
    assert not re.search(r"/(work|root|home)/", README)
