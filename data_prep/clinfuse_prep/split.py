"""Train, validation and test by patient, never by slice or case."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clinfuse.errors import ConfigError

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.65, 0.15, 0.2)
Fractions = tuple[float, float, float]


def asked_split(text: str, patients: Sequence[str]) -> Fractions | dict[str, str]:
    """What `--split` asks for: three shares, or, by a CSV file, patient → split.

    Raises:
        ConfigError: neither; impossible shares; or a file that does not place every patient.
    """
    path = Path(text)
    if path.is_file():
        return _from_file(path, patients)
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            "--split is not usable",
            expected="three shares with commas, or a CSV file with columns patient and split",
            found=f"no file {text}",
        ) from error
    _check_fractions((train, val, test))
    return train, val, test


def _from_file(path: Path, patients: Sequence[str]) -> dict[str, str]:
    with path.open(newline="") as stream:
        given = {row.get("patient", ""): row.get("split", "") for row in csv.DictReader(stream)}
    missing = [p for p in patients if given.get(p) not in SPLITS]
    if missing:
        raise ConfigError(
            "the split file does not place every patient",
            expected=f"columns patient and split ({', '.join(SPLITS)})",
            found=f"{len(missing)} of {len(patients)} patients without a split",
        )
    return {p: given[p] for p in patients}


def _check_fractions(fractions: Fractions) -> None:
    if not (min(fractions) >= 0 and 0 < sum(fractions) < float("inf")):
        raise ConfigError("the split is impossible", expected="three shares >= 0", found=str(fractions))


def split_patients(
    patients: Sequence[str],
    *,
    fractions: Fractions = DEFAULT_FRACTIONS,
    seed: int = 0,
    shuffle: bool = True,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give every patient one split.

    Args:
        patients: names, in any order; repeated names count once.
        fractions: shares of train, val and test; they are brought to a sum of 1. With three or more patients
            every split with a positive share gets at least one.
        shuffle: draw at random by the seed; otherwise the first go to train and the last to test.
        known: splits given before; they stay. Where they agree with a fresh draw (a killed run that is resumed),
            the others get what that draw gives them; otherwise (a cohort that grew) what the shares still need.

    Returns:
        patient → "train", "val" or "test". 8 patients give 5, 1, 2; 7 give 5, 1, 1.

    Raises:
        ConfigError: negative fractions or all zero.
    """
    _check_fractions(fractions)
    kept = {p: s for p, s in (known or {}).items() if s in SPLITS and p in set(patients)}
    drawn = _draw(patients, fractions, seed, {}, shuffle=shuffle)
    if all(drawn[p] == s for p, s in kept.items()):
        return drawn
    return _draw(patients, fractions, seed, kept, shuffle=shuffle)


def _draw(
    patients: Sequence[str],
    fractions: Fractions,
    seed: int,
    kept: Mapping[str, str],
    *,
    shuffle: bool,
) -> dict[str, str]:
    """Fill up each split's share with the patients that are not kept."""
    fresh = sorted(set(patients) - set(kept))
    if shuffle:
        fresh = [fresh[i] for i in np.random.default_rng(seed).permutation(len(fresh))]
    n, total = len(set(patients)), sum(fractions)
    want = {s: round(f / total * n) for s, f in zip(SPLITS, fractions, strict=True)}
    for name, share in zip(SPLITS, fractions, strict=True):
        if share > 0 and n >= len(SPLITS):
            want[name] = max(1, want[name])
    held = list(kept.values())
    need_test = max(0, want["test"] - held.count("test"))
    need_val = max(0, want["val"] - held.count("val"))
    n_train = max(len(fresh) - need_test - need_val, 0)
    order = ["train"] * n_train + ["val"] * need_val + ["test"] * need_test
    if fractions[0] == 0:
        order = order[n_train:] + ["test"] * n_train
    return {**kept, **dict(zip(fresh, order[: len(fresh)], strict=True))}
