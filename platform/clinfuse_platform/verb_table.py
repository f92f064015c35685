"""The verbs of all rooms, found through their entry points and loaded one at a time."""

from __future__ import annotations

import argparse
import ctypes
import difflib
import gc
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse.verbs import ENTRY_POINT_GROUP, Verb


def verb_entries() -> dict[str, EntryPoint]:
    """Every declared verb by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def load_verb(name: str) -> Verb:
    """Import the one module that holds this verb.

    Raises:
        ConfigError: there is no such verb; the message names the nearest ones.
    """
    entries = verb_entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3) or sorted(entries)
        raise ConfigError("no such verb", expected=f"one of {', '.join(near)}", found=repr(name))
    verb = entries[name].load()
    if not isinstance(verb, Verb):
        raise TypeError(f"entry point {name} is {type(verb).__name__}, not a clinfuse.verbs.Verb")
    return verb


def build_parser(verb: Verb) -> argparse.ArgumentParser:
    """The verb's own parser, with `--json`, `--address` and `--traceback`, which every verb takes."""
    parser = argparse.ArgumentParser(
        prog=f"clinfuse {verb.name}",
        description=verb.help,
        epilog="Research use only.",
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    common = parser.add_argument_group("for every verb")
    common.add_argument("--json", action="store_true", help="write the result as JSON on standard output")
    common.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to use (default: RAY_ADDRESS, else start one here)",
    )
    common.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


def run_parsed(verb: Verb, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the verb's work after its check, inside a Ray session where it needs one."""
    try:
        if verb.check is not None:
            verb.check(arguments)
        if not verb.needs_ray:
            return verb.run(arguments)
        from clinfuse_prep.session import session

        with session(arguments.address):
            return verb.run(arguments)
    finally:
        give_memory_back()


def give_memory_back() -> None:
    """Return what finished work leaves free inside this process to the system (glibc keeps it otherwise).

    A process that runs several verbs, as the demo does, would else hold each one's peak until it ends.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def run_verb(name: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """Run another room's verb from code, by the words one would type after its name.

    Args:
        name: the verb, e.g. "prep".
        words: its arguments as on the command line, e.g. ["cohort", "--out", "d.zarr"].

    Returns:
        The verb's result dict (see clinfuse.verbs.Verb.run). An open Ray session is used, not replaced.

    Raises:
        ConfigError: no such verb.
        SystemExit: the arguments are wrong (code 2), as argparse does.
    """
    verb = load_verb(name)
    return run_parsed(verb, build_parser(verb).parse_args(list(words)))
