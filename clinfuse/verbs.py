"""What a room offers on the command line: a verb, found by the entry-point group `clinfuse.verbs`, and its settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clinfuse.errors import ConfigError

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


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`--set KEY=VALUE` words as a dict; values are read as numbers or JSON (lists, true, false), else as text.

    Raises:
        ConfigError: a word without '=', or without a key before it.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError("--set cannot be read", expected="KEY=VALUE", found=repr(word))
        settings[key.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    readers: tuple[Callable[[str], Any], ...] = (json.loads, float)
    for read in readers:
        with suppress(ValueError):
            return read(text)
    return text
