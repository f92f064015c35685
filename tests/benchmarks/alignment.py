"""What alignment leaves of drawn rigid motions, in mm: `python tests/benchmarks/alignment.py [--patients N]`.

Heads of the embedded cohort; each CT is moved from its true place twice, by up to 1.5 mm and 1.5 degrees.
Beside the alignment as it is: with a quarter of the points, and with every level starting from the last one's answer
even where that tells less than no motion. Writes tests/benchmarks/results/alignment.md; fails if a quarter of the
motion is left in the mean, or half of the largest anywhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.store import CaseStore

from clinfuse import alignment
from clinfuse.alignment import ARM_MM, LEVELS_MM, Floats, find_alignment, moved_by
from clinfuse.case import HEAD_LEVEL, Case
from clinfuse.rotation import rotation

RESULT = Path(__file__).parent / "results" / "alignment.md"
MOST = 1.5
DRAWS = 2
FEWER = tuple((sigma, count // 4) for sigma, count in LEVELS_MM)
VARIANTS = {
    "as it is": {"LEVELS_MM": LEVELS_MM},
    "a quarter of the points": {"LEVELS_MM": FEWER},
    "no comparison with no motion": {"_better": lambda seen, found, still: found},
}


def head_points(case: Case) -> Floats:
    """A thousandth of the head's voxels, (N, 3) mm from the centre."""
    head = np.argwhere((case.anatomy > HEAD_LEVEL) | (case.companion > HEAD_LEVEL))[::1000]
    return (head - (np.array(case.shape) - 1) / 2) * np.array(case.spacing)


def left_mm(points: Floats, *thetas: Floats) -> float:
    """Root mean square displacement of the points' content after these motions, the last one first."""
    source = points
    for theta in reversed(thetas):
        source = (source - theta[:3]) @ rotation(theta[3:] / ARM_MM)
    return float(np.sqrt(np.mean(np.sum((source - points) ** 2, axis=1))))


def measure(cases: list[Case]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Motion left (mm) and seconds by variant; "as moved" is the motion itself."""
    left, seconds = defaultdict(list), defaultdict(list)
    rng = np.random.default_rng(0)
    for case in cases:
        points = head_points(case)
        for _ in range(DRAWS):
            theta = rng.uniform(-MOST, MOST, 6) * np.array([1, 1, 1, *[np.radians(ARM_MM)] * 3])
            moved = np.clip(moved_by(theta, case.aligned_companion, case.spacing), 0, 1)
            left["as moved"].append(left_mm(points, theta))
            for name, changes in VARIANTS.items():
                start = time.perf_counter()
                with patch.multiple(alignment, **changes):
                    found = find_alignment(case.anatomy, moved, case.spacing)
                seconds[name].append(time.perf_counter() - start)
                left[name].append(left_mm(points, theta, found.theta))
    return left, seconds


def main() -> int:
    """Measure, write the table, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=12)
    patients = parser.parse_args().patients
    with tempfile.TemporaryDirectory() as folder:
        cohort, data = Path(folder) / "cohort", Path(folder) / "cohort.zarr"
        run_verb("cohort", ["--out", str(cohort), "--patients", str(patients)])
        run_verb("prep", [str(cohort), "--out", str(data), "--no-compare", "--workers", "0"])
        store = CaseStore(data)
        left, seconds = measure([store.read(case_id) for case_id in store.case_ids()])
    lines = [
        "# What alignment leaves of rigid motions",
        "",
        f"Made by `python tests/benchmarks/alignment.py`: {patients} simulated heads, {DRAWS} motions each.",
        "",
        "| | left, mean (mm) | median | largest | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, values in left.items():
        time_taken = f"{np.mean(seconds[name]):.2f}" if name in seconds else "–"
        numbers = f"{np.mean(values):.2f} | {np.median(values):.2f} | {np.max(values):.2f}"
        lines.append(f"| {name} | {numbers} | {time_taken} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))
    ours, moved = left["as it is"], left["as moved"]
    return 0 if np.mean(ours) <= np.mean(moved) / 4 and max(ours) <= max(moved) / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
