"""`clinfuse runs list|show|compare`: what was trained, from which data by which code, and what came of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clinfuse.errors import ConfigError
from clinfuse.verbs import Verb
from clinfuse_platform.lineage import KINDS, lineage

if TYPE_CHECKING:
    from clinfuse_platform.runs import Run

FEWEST_TO_COMPARE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse runs`."""
    parser.add_argument("action", choices=("list", "show", "compare"), help="what to do")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or folders, for show and compare")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """List all runs, show one or more with their lineage, or tell in what two or more differ."""
    from clinfuse_platform.runs import find_run, list_runs

    if arguments.action == "list":
        rows = [summary(one) for one in list_runs(arguments.storage)]
        show_table("runs", rows)
        return {"runs": rows}
    fewest = FEWEST_TO_COMPARE if arguments.action == "compare" else 1
    if len(arguments.runs) < fewest:
        raise ConfigError(
            f"{arguments.action} needs runs", expected=f"{fewest} or more", found=str(len(arguments.runs))
        )
    found = [find_run(name, arguments.storage) for name in arguments.runs]
    if arguments.action == "show":
        told = [
            {**summary(one), "lineage": lineage(one), "jobs": one.read_json("state.json")} for one in found
        ]
        return {"result": json.dumps(told, indent=2), "runs": told}
    rows = differences(found)
    show_table("differences", rows)
    return {"differences": rows}


def summary(one: Run) -> dict[str, Any]:
    """One run in one line: state, recipe, data, last losses, models."""
    config = one.read_json("config.json")
    losses = last_losses(one)
    return {
        "run": one.name,
        "state": one.state("train"),
        "recipe": config.get("config", {}).get("recipe", ""),
        "seed": config.get("config", {}).get("seed", ""),
        "data": config.get("data_hash", ""),
        "created": one.read_json("environment.json").get("created", ""),
        "loss": ", ".join(f"{phase} {loss:.4g}" for phase, loss in losses.items()),
        "models": ", ".join(kind for kind in KINDS if one.has_model(kind)),
    }


def last_losses(one: Run) -> dict[str, float]:
    """Last recorded loss of each training phase."""
    rows = one.metrics()
    losses = {}
    for phase, part in rows.groupby("phase", sort=False) if len(rows) else ():
        for name in ("loss", "segmentation"):
            known: list[float] = part[name].dropna().tolist() if name in part else []
            if known:
                losses[str(phase)] = float(known[-1])
                break
    return losses


def differences(found: list[Run]) -> list[dict[str, Any]]:
    """Settings, versions and losses in which the runs differ, a row each with a column per run."""
    from clinfuse_platform.runs import flat

    told: list[Mapping[str, Any]] = []
    for one in found:
        environment = one.read_json("environment.json")
        environment.pop("created", None)
        losses = {f"loss.{phase}": loss for phase, loss in last_losses(one).items()}
        told.append(flat(one.read_json("config.json")) | flat(environment) | losses)
    names = sorted({name for facts in told for name in facts})
    rows = []
    for name in names:
        values = [facts.get(name) for facts in told]
        if any(value != values[0] for value in values[1:]):
            rows.append({"setting": name, **{one.name: v for one, v in zip(found, values, strict=True)}})
    return rows


def show_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table on standard error."""
    from rich.table import Table

    from clinfuse.console import CONSOLE, say

    if not rows:
        say(f"no {title}")
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    CONSOLE.print(table)


RUNS = Verb(
    name="runs",
    help="List training runs, show their lineage, compare them.",
    add_arguments=add_arguments,
    run=run,
)
