"""What a room offers on the command line: a verb, found through the entry-point group `clinfuse.verbs`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENTRY_POINT_GROUP = "clinfuse.verbs"


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One `clinfuse NAME …`.

    Attributes:
        name: the word on the command line.
        help: one sentence for `clinfuse --help`.
        add_arguments: adds the verb's own arguments to its parser (`--json`, `--address` are added for all).
        run: does the work; returns a JSON-able dict. Key "result" is the path or URL to look at; key "lost"
            (a count) makes the exit code 1 although the rest went on.
        needs_ray: whether a Ray session (started or connected to) must exist before `run`.
        check: refuses what can be told to be wrong without a session, before one is started; raises as `run`.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    needs_ray: bool = False
    check: Callable[[argparse.Namespace], object] | None = None
