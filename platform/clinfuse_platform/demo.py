"""`clinfuse demo`: the whole job on the embedded cohort, by the same verbs that anyone types, to a report to look at.

Most steps are verbs of the rooms, found through the verb registry and run in one process and one Ray session; before
each its command line is shown, after it time and memory. Beside them: the test cases' pictures, timing teacher against
student, and writing the report.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from clinfuse.console import say
from clinfuse.errors import ConfigError
from clinfuse.verbs import Verb
from clinfuse_platform.demo_journal import SERVED, TIMED, Journal, open_journal
from clinfuse_platform.demo_serving import free_port, serving
from clinfuse_platform.memory import MemorySampler
from clinfuse_platform.verb_table import run_verb

PRESETS = ("balanced", "bone_tumor")
MEMBERS = 3
PATHS = {
    "cohort": "cohort",
    "store": "cohort.zarr",
    "runs": "runs",
    "run": "runs/demo",
    "ensemble": "runs/demo/ensemble",
    "table": "evaluate",
    "sweep": "sweep",
    "fronts": "pareto",
}
# Each goes on in what it left unfinished, by itself or by --resume, so that a demo killed on the way does.
COMMANDS = {
    "cohort": "clinfuse cohort --out {cohort} --patients {patients} --spacing {spacing}",
    "prep": "clinfuse prep {cohort} --layout cohort --out {store} --resume",
    "train": "clinfuse train {store} --recipe {recipe} --run demo --storage {runs} --workers 2",
    "distill": "clinfuse distill {run} --steps 4 --workers 2",
    "ensemble": "clinfuse ensemble {run} --members {members} --workers 2",
    "calibrate": "clinfuse calibrate {ensemble} --data {store} --looks {looks}",
    "evaluate": "clinfuse evaluate {ensemble} {baselines} --data {store} --out {table}",
    "sweep": "clinfuse sweep {run} --data {store} --presets {presets} --trials {trials} --steps 6 --slices 6 "
    "--out {sweep} --resume",
    "pareto": "clinfuse pareto {sweep} --presets {presets} --out {fronts}",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a demo is.

    Attributes:
        patients: of the embedded cohort; each is one case.
        spacing_mm: isotropic voxel spacing.
        looks: of the error head at each training patient.
        trials: of the sweep, per preset.
        slices: axial slices of the slab on which teacher and student are timed.
    """

    patients: int
    spacing_mm: float
    looks: int
    trials: int
    slices: int


SIZES = {
    "cpu-debug": Size(patients=6, spacing_mm=4.0, looks=1, trials=2, slices=2),
    "cpu-small": Size(patients=8, spacing_mm=2.0, looks=2, trials=6, slices=2),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's arguments."""
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="new folder (default demo_out)")
    parser.add_argument(
        "--recipe", choices=sorted(SIZES), default="cpu-small", help="training recipe (default cpu-small)"
    )
    parser.add_argument("--patients", type=int, help="of the embedded cohort, at least 6 (default by recipe)")
    parser.add_argument("--spacing", type=float, metavar="MM", help="voxel spacing in mm (default by recipe)")
    parser.add_argument("--trials", type=int, help="of the sweep, per preset (default by recipe)")
    parser.add_argument("--resume", action="store_true", help="go on in --out; finished steps are skipped")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run or resume the demo; the result is its report."""
    size = chosen_size(arguments)
    settings = {
        "recipe": arguments.recipe,
        "patients": size.patients,
        "spacing_mm": size.spacing_mm,
        "trials": size.trials,
    }
    journal = open_journal(arguments.out, settings, resume=arguments.resume)
    job = _Job(journal, size, arguments.recipe, arguments.address)
    with MemorySampler() as memory:
        job.all(memory)
    say(f"the whole job: {journal.seconds:.0f} s, at most {journal.peak_gb:.2f} GB")
    return {
        "result": str(arguments.out / "report.html"),
        "seconds": round(journal.seconds, 1),
        "peak_gb": round(journal.peak_gb, 2),
        "steps": {record.title: round(record.seconds, 1) for record in journal.records},
    }


def chosen_size(arguments: argparse.Namespace) -> Size:
    """The recipe's size with what was asked for instead.

    Raises:
        ConfigError: fewer than 6 patients, a spacing outside 1 to 6 mm, or no trial.
    """
    default = SIZES[arguments.recipe]
    size = replace(
        default,
        patients=default.patients if arguments.patients is None else arguments.patients,
        spacing_mm=default.spacing_mm if arguments.spacing is None else arguments.spacing,
        trials=default.trials if arguments.trials is None else arguments.trials,
    )
    if size.patients < 6 or not 1.0 <= size.spacing_mm <= 6.0 or size.trials < 1:
        raise ConfigError(
            "the demo cannot be of that size",
            expected="patients >= 6, 1 <= spacing <= 6 mm, trials >= 1",
            found=f"patients {size.patients}, spacing {size.spacing_mm} mm, trials {size.trials}",
        )
    return size


def command_lines(out: Path, size: Size, recipe: str) -> dict[str, str]:
    """The demo's command lines by title; paths are quoted for a shell."""
    from clinfuse.baselines import TRIVIAL

    quoted = {name: quote(str(out / path)) for name, path in PATHS.items()}
    fixed = {"presets": ",".join(PRESETS), "baselines": " ".join(TRIVIAL), "members": MEMBERS}
    numbers = asdict(size) | {"spacing": f"{size.spacing_mm:g}"}
    return {
        title: line.format(**quoted, **fixed, **numbers, recipe=recipe) for title, line in COMMANDS.items()
    }


class _Job:
    """The demo's steps in order; most are command lines, as one would type them."""

    def __init__(self, journal: Journal, size: Size, recipe: str, address: str | None) -> None:
        self.journal, self.size, self.recipe, self.address = journal, size, recipe, address
        self.out = journal.folder
        self.store = self.out / "cohort.zarr"
        self.run_folder = self.out / "runs" / "demo"

    def all(self, memory: MemorySampler) -> None:
        """Every step, with Ray from the first one that needs it."""
        from clinfuse_prep.session import session

        commands = command_lines(self.out, self.size, self.recipe)
        title = next(iter(commands))
        self._verb(title, commands.pop(title), memory)
        finished = self.journal.find(SERVED) is not None
        with nullcontext() if finished else session(self.address):
            for title, line in commands.items():
                self._verb(title, line, memory)
            self.journal.do(TIMED, "", self._latency, memory)
            port = free_port()
            lines = "\n".join(self.serving_commands(port))
            self.journal.do(SERVED, lines, lambda: self._serve_and_fuse(port), memory)
        self.journal.do("report", "", self._report, memory)

    def _verb(self, title: str, line: str, memory: MemorySampler) -> None:
        _, name, *words = shlex.split(line)
        self.journal.do(title, line, lambda: run_verb(name, words), memory)

    def _latency(self) -> Mapping[str, Any]:
        from clinfuse_platform.demo_latency import time_teacher_and_student

        return time_teacher_and_student(
            self.run_folder / "model", self.run_folder / "student", self.store, slices=self.size.slices
        )

    def serving_commands(self, port: int) -> tuple[str, str]:
        """The service's and the client's command line, for the first test patient."""
        from clinfuse_platform.demo_cases import first_test_patient

        model, out = quote(str(self.run_folder / "ensemble")), quote(str(self.out / "served"))
        patient = self.out / "cohort" / first_test_patient(self.store)
        images = " ".join(
            f"--{role} {quote(str(patient / name))}.nii.gz"
            for role, name in {
                "anatomy": "mr",
                "companion": "ct",
                "brain": "brain",
                "lesion": "lesion",
            }.items()
        )
        serve = f"clinfuse serve {model} --members {MEMBERS} --aggregators 1 --port {port}"
        return serve, f"clinfuse fuse {images} --url http://127.0.0.1:{port} --preset balanced --out {out}"

    def _serve_and_fuse(self, port: int) -> Mapping[str, Any]:
        import ray

        serve, fuse = self.serving_commands(port)
        address = ray.get_runtime_context().gcs_address
        start = time.monotonic()
        with serving(shlex.split(serve)[2:], address=address, log=self.out / "serve.log") as url:
            ready = time.monotonic()
            result = run_verb("fuse", shlex.split(fuse)[2:])
            answered = time.monotonic()
        return {**result, "url": url, "start_seconds": ready - start, "request_seconds": answered - ready}

    def _report(self) -> Mapping[str, Any]:
        from clinfuse_platform.demo_report import write_report

        return {"result": str(write_report(self.journal, self.store))}


DEMO = Verb(
    name="demo",
    help="run the whole job on the embedded cohort and write a report to look at",
    add_arguments=add_arguments,
    run=run,
)
