"""Prepared cases that are kept: within a bound, under tokens that tell nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinfuse_serve.kept import KeptCase, KeptCases, case_token, check_roles
from clinfuse_serve.limits import Limits

from clinfuse.case import Case
from clinfuse.errors import InputError

IMAGES = ("anatomy", "companion", "brain", "bone", "lesion")


def test_kept_cases_forget_the_oldest_and_the_idle(tiny_case: Case) -> None:
    now = [0.0]
    size = KeptCase("a", tiny_case).bytes
    kept = KeptCases(2 * size, 10, clock=lambda: now[0])
    for token in "ab":
        kept.put(KeptCase(token, tiny_case))
    assert kept.get("a") is not None
    kept.put(KeptCase("c", tiny_case))
    assert kept.get("b") is None and kept.get("a") is not None and kept.bytes == 2 * size
    now[0] = 11
    assert kept.get("a") is None and len(kept) == 0
    small = KeptCases(size - 1, 10)
    small.put(KeptCase("d", tiny_case))
    assert len(small) == 0


def test_colour_and_the_aligned_companion_count_too(tiny_case: Case) -> None:
    voxels = tiny_case.anatomy.size
    chroma = np.zeros((2, *tiny_case.shape), np.float32)
    rich = replace(tiny_case, aligned_companion=tiny_case.companion, chroma=chroma)
    assert KeptCase("a", tiny_case).bytes == (2 * 4 + 3) * voxels
    assert KeptCase("b", rich).bytes == (5 * 4 + 3) * voxels
    kept = KeptCases(2 * KeptCase("b", rich).bytes - 1, 10)
    for token in "bc":
        kept.put(KeptCase(token, rich))
    assert kept.get("b") is None and kept.bytes == KeptCase("c", rich).bytes


def test_case_token_depends_on_bytes_roles_kind_and_secret_only(tmp_path: Path) -> None:
    one, two = tmp_path / "Smith^John.nii", tmp_path / "x.nii"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    token = case_token(b"s", {"anatomy": one})
    assert token == case_token(b"s", {"anatomy": two}) and token.isalnum()
    assert token != case_token(b"t", {"anatomy": one}) != case_token(b"s", {"companion": one})
    kinds = [case_token(b"s", {"anatomy": one}, kind) for kind in (None, "ct", "spect", "pet")]
    assert kinds[0] == token and len(set(kinds)) == 4
    two.write_bytes(b"abd")
    assert token != case_token(b"s", {"anatomy": two})


def test_both_images_are_needed() -> None:
    with pytest.raises(InputError, match="companion image is missing"):
        check_roles({"anatomy": 1})


def test_one_too_large_for_all_evicts_none(tiny_case: Case) -> None:
    size = KeptCase("a", tiny_case).bytes
    kept = KeptCases(2 * size, 10)
    for token in "ab":
        kept.put(KeptCase(token, tiny_case))
    deep = [np.concatenate([getattr(tiny_case, name)] * 3) for name in IMAGES]
    kept.put(KeptCase("c", replace(tiny_case, **dict(zip(IMAGES, deep, strict=True)))))
    assert kept.get("c") is None and kept.get("a") is not None and kept.get("b") is not None


def test_heads_at_one_millimetre_are_kept(tiny_case: Case) -> None:
    """Three of 181 × 217 × 181 voxels, by their bytes: two float32 images and three masks."""
    voxels = 181 * 217 * 181
    per_voxel = KeptCase("a", tiny_case).bytes / tiny_case.anatomy.size
    assert Limits().kept_bytes >= 3 * per_voxel * voxels
