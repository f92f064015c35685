"""The command `clinfuse`: finds the verb, runs it, says where its result is, turns errors into exit codes.

Exit codes: 0 done, 1 failed (or done with cases lost), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse.lean import use_lean_imports
from clinfuse.verbs import Verb
from clinfuse_platform.verb_table import build_parser, load_verb, run_parsed, verb_entries

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `clinfuse VERB …` and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads, see session.LOCAL_SETTINGS
    if argv is None:  # a process of our own
        use_lean_imports()
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(overview())
        return 0 if words else WRONG_USE
    if words[0] == "--version":
        sys.stdout.write(f"clinfuse {__version__}\n")
        return 0
    try:
        verb = load_verb(words[0])
        arguments = build_parser(verb).parse_args(words[1:])
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        return report_error(error, show_traceback="--traceback" in words)
    return _run(verb, arguments)


def _run(verb: Verb, arguments: argparse.Namespace) -> int:
    try:
        result = run_parsed(verb, arguments)
    except KeyboardInterrupt:
        sys.stderr.write(f"clinfuse: interrupted; {_how_to_go_on(arguments)}\n")
        return INTERRUPTED
    except Exception as error:
        return report_error(error, show_traceback=arguments.traceback)
    return report_result(result, as_json=arguments.json)


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    """What to type after an interrupt, by the options that a verb has."""
    if getattr(arguments, "plan", False):
        return "nothing was written"
    if getattr(arguments, "resume", True):
        return "run the same command again to go on"
    instead = " instead of --overwrite" if getattr(arguments, "overwrite", False) else ""
    return f"run the same command again with --resume{instead} to go on"


def overview() -> str:
    """The text of `clinfuse --help`: every verb with its sentence; a room that does not load is named so."""
    lines = [
        "usage: clinfuse VERB … (clinfuse VERB --help tells each verb's arguments)",
        "",
        RESEARCH_USE,
        "",
    ]
    for name in verb_entries():
        try:
            text = load_verb(name).help
        except Exception as error:
            text = f"(does not load here: {type(error).__name__}: {error})"
        lines.append(f"  {name:<12} {text}")
    return "\n".join(lines) + "\n"


def report_result(result: Mapping[str, Any], *, as_json: bool) -> int:
    """Write the result (JSON, or the path to look at) to standard output; 1 if cases were lost, else 0."""
    from clinfuse.outputs import jsonable

    lost = int(result.get("lost") or 0)
    if as_json:
        sys.stdout.write(json.dumps(jsonable(result), indent=2, allow_nan=False) + "\n")
    elif result.get("result") is not None:
        sys.stdout.write(f"{result['result']}\n")
    if lost:
        sys.stderr.write(f"clinfuse: done, but {lost} failed or were lost; see above\n")
    return FAILED if lost else 0


def report_error(error: Exception, *, show_traceback: bool = False) -> int:
    """One clear line on standard error; 2 for wrong use, 1 for everything else."""
    cause = our_error(error)
    if show_traceback:
        traceback.print_exception(error, file=sys.stderr)
    if cause is not None:
        sys.stderr.write(f"clinfuse: {cause}\n")
        return WRONG_USE if isinstance(cause, ConfigError) else FAILED
    sys.stderr.write(f"clinfuse: unexpected {type(error).__name__}: {error}\n")
    if not show_traceback:
        sys.stderr.write("clinfuse: add --traceback to see where\n")
    return FAILED


def our_error(error: BaseException | None, depth: int = 5) -> ClinfuseError | None:
    """The ClinfuseError inside an error, also when Ray wrapped it in a task's or worker's error."""
    if error is None or depth == 0:
        return None
    if isinstance(error, ClinfuseError) and not hasattr(error, "cause"):  # what Ray wraps has one
        return error
    inner = [getattr(error, "cause", None), error.__cause__]
    inner.extend(getattr(error, "worker_failures", {}).values())
    for candidate in inner:
        found = our_error(candidate, depth - 1) if isinstance(candidate, BaseException) else None
        if found is not None:
            return found
    return error if isinstance(error, ClinfuseError) else None


if __name__ == "__main__":
    sys.exit(main())
