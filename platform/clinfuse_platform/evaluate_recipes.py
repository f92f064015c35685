"""Stated evaluations. `aanlib`: the fusion field's table for every baseline, on AANLIB patients held out by patient."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd

from clinfuse.errors import InputError

DATA_VARIABLE = "CLINFUSE_TEST_DATA"
SPLIT = "0.43,0.14,0.43"


def prepared(arguments: argparse.Namespace, out: Path) -> None:
    """Fill in what the recipe states: dataset (prepared here if a folder of pictures is given), methods, metrics.

    Args:
        arguments: changed in place. `data` may be a dataset, the folder of AANLIB's MRI-CT pairs (`case_*/MRI/*.png`,
            `case_*/CT/*.png`), or nothing, then `$CLINFUSE_TEST_DATA/aanlib/MRI-CT`.
        out: where the dataset is prepared.

    Raises:
        InputError: no such data, or one patient in two splits.
    """
    from clinfuse_prep.store import CaseStore

    from clinfuse.baselines import BASELINES
    from clinfuse_platform.storage import storage_path
    from clinfuse_platform.verb_table import run_verb

    source = arguments.data or default_source()
    if CaseStore(str(source)).exists():
        arguments.data = source
    else:
        arguments.data = str(out / "aanlib.zarr")
        if not (storage_path(arguments.data) / "manifest.parquet").exists():
            words = [source, "--out", arguments.data, "--split", SPLIT, "--no-compare", "--workers", "0"]
            run_verb("prep", [*words, "--resume"])
    refuse_leaks(arguments.data)
    arguments.methods = list(dict.fromkeys([*arguments.methods, *BASELINES]))
    arguments.metrics = "field"


def default_source() -> str:
    """The folder of pairs that tests use too.

    Raises:
        InputError: the variable is not set, or there is no such folder.
    """
    root = os.environ.get(DATA_VARIABLE, "")
    folder = Path(root) / "aanlib" / "MRI-CT"
    if not root or not folder.is_dir():
        raise InputError(
            "the AANLIB pairs are not here",
            expected=f"--data FOLDER with case_*/MRI and case_*/CT, or {DATA_VARIABLE} set",
            found="neither",
            todo="get the Harvard MRI-CT pairs (research use only, not to be passed on)",
        )
    return str(folder)


def refuse_leaks(data: str) -> None:
    """Make sure that no patient lies in two splits.

    Raises:
        InputError: one does; the pseudonyms are shown.
    """
    from clinfuse_platform.storage import storage_path

    with (storage_path(data) / "manifest.parquet").open("rb") as file:
        rows = pd.read_parquet(file, columns=["patient", "split"])
    splits = rows.groupby("patient")["split"].nunique()
    leaking = sorted(splits.index[splits > 1])
    if leaking:
        raise InputError(
            "patients leak between splits",
            expected="every patient in one split",
            found=", ".join(leaking),
            todo="prepare the dataset again; clinfuse prep splits by patient",
        )
