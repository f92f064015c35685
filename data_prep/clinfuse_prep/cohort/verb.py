"""`clinfuse cohort`: write the embedded cohort of simulated MR–CT pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinfuse.verbs import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--patients", type=int, default=8, help="how many patients, 1 to 999 (default 8)")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        default=[2.0],
        metavar="MM",
        help="voxel spacing in mm: one number, or D H W",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the cohort (default 0)")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from clinfuse.console import counted, say, step
    from clinfuse_prep.cohort.make import make_cohort

    def told(name: str, done: int, total: int) -> None:
        say(f"{name} ({done} of {total})")

    with step(f"simulating {counted(args.patients, 'patient')}"):
        folders = make_cohort(args.out, args.patients, args.spacing, args.seed, told)
    return {"result": str(Path(args.out)), "patients": len(folders), "simulated": True}


COHORT = Verb(
    name="cohort",
    help="Write the embedded cohort: simulated MR and CT of heads with lesions, masks and a known misregistration.",
    add_arguments=_add_arguments,
    run=_run,
)
