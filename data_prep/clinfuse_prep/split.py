"""Train, validation and test by patient, never by slice or case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clinfuse.errors import ConfigError

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.65, 0.15, 0.2)


def split_patients(
    patients: Sequence[str],
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
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
    total = sum(fractions)
    if min(fractions) < 0 or total <= 0:
        raise ConfigError("the split is impossible", expected="three shares >= 0", found=str(fractions))
    kept = {p: s for p, s in (known or {}).items() if s in SPLITS and p in set(patients)}
    drawn = _draw(patients, fractions, seed, {}, shuffle=shuffle)
    if all(drawn[p] == s for p, s in kept.items()):
        return drawn
    return _draw(patients, fractions, seed, kept, shuffle=shuffle)


def _draw(
    patients: Sequence[str],
    fractions: tuple[float, float, float],
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
