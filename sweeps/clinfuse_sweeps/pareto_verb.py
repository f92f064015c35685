"""`clinfuse pareto`: compare the fronts of sweeps, and write a chosen trial as a preset file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinfuse.console import say
from clinfuse.verbs import Verb
from clinfuse_sweeps.common import shared_folder, words, write_report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP", help="sweep folders")
    parser.add_argument("--presets", type=words, metavar="A,B", help="which presets (default all)")
    parser.add_argument("--objectives", type=words, metavar="A,B", help="default: those of the first sweep")
    parser.add_argument(
        "--out", type=shared_folder, metavar="DIR", help="where to write (default SWEEP/pareto)"
    )
    parser.add_argument(
        "--export",
        metavar="PRESET",
        help="write this preset's knee as a presets file; a label, as 'stroke (night)', where sweeps stand apart",
    )
    parser.add_argument("--trial", metavar="ID", help="with --export: this trial instead of the knee")
    parser.add_argument("--name", metavar="NAME", help="with --export: name of the new preset")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    import pandas as pd
    from clinfuse_platform.storage import write_table

    from clinfuse_sweeps.compare import open_sweep
    from clinfuse_sweeps.export import export_preset

    sweeps = [open_sweep(folder.resolve()) for folder in args.sweeps]
    out: Path = (args.out or sweeps[0].folder / "pareto").resolve()
    comparison, path = write_report(
        sweeps,
        out,
        title="Pareto comparison",
        presets=args.presets,
        objectives=args.objectives,
        name="pareto",
    )
    fronts = [entry.table[entry.table["on_front"]].assign(entry=entry.label) for entry in comparison.entries]
    write_table(out / "fronts.parquet", pd.concat(fronts).drop(columns="folder"))
    write_table(out / "numbers.parquet", comparison.numbers)
    found: dict[str, Any] = {
        "result": str(path),
        "numbers": comparison.numbers.to_dict("records"),
        "warnings": list(comparison.warnings),
    }
    for row in found["numbers"]:
        say(f"  {row['preset']}: hypervolume {row['hypervolume']:.4f}, {row['front']} trials on the front")
    for text in comparison.warnings:
        say(f"  {text}")
    if args.export:
        exported = export_preset(comparison, sweeps, args.export, out, trial=args.trial, name=args.name)
        found["preset"] = str(exported)
        say(f"  preset file: {exported}")
    return found


PARETO = Verb(
    name="pareto",
    help="Compare the fronts of sweeps: hypervolume, attainment, knee; export a preset.",
    add_arguments=_arguments,
    run=_run,
)
