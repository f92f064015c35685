"""FusionPipeline: deterministic, exact round trip through its folder, refuses what is not a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import make

from clinfuse import RESEARCH_USE
from clinfuse.baselines import BASELINES
from clinfuse.case import Case
from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.method.error_head import FILE, ErrorHead
from clinfuse.method.prior import findings
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets


def test_result_has_the_case_s_shape_and_tells_its_story(tiny_case: Case) -> None:
    result = make()(tiny_case, "bone_tumor", seed=4, jitters=1)
    for name in ("fused", "uncertainty", "std", "aleatoric", "epistemic", "registration"):
        values = getattr(result, name)
        assert values.shape == tiny_case.shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert result.fused.min() >= 0
    assert result.fused.max() <= 1
    assert result.registration.max() > 0
    assert result.interval is None
    info = result.info
    assert info["preset"] == "bone_tumor"
    assert info["weights"]["beta"] == load_presets()["bone_tumor"].beta
    assert (info["seed"], info["steps"], info["members_answered"], info["degraded"]) == (4, 2, 2, False)
    assert info["notice"] == RESEARCH_USE
    assert "uncalibrated" in info["units"]["uncertainty"]


def test_what_was_found_of_the_pair_goes_with_the_result(tiny_case: Case) -> None:
    slab, finding = tiny_case.slices(4, 7), {"severity": "warning", "problem": "as it came"}
    told = replace(slab, attrs={**slab.attrs, "findings": [finding]})
    assert make(members=1)(told).info["findings"][0] == finding
    assert make(members=1)(slab).info["findings"] == []


def test_a_view_that_runs_backwards_is_fused_like_its_copy(tiny_case: Case) -> None:
    slab, pipeline = tiny_case.slices(4, 7), make(members=1)
    arrays = {name: getattr(slab, name)[:, ::-1] for name in ("anatomy", "companion", *slab.masks)}
    copies = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    one, other = (pipeline(replace(slab, **given)).fused for given in (arrays, copies))
    np.testing.assert_array_equal(one, other)


def test_same_seed_same_image_and_slab_equals_whole(tiny_case: Case) -> None:
    pipeline = make(members=1)
    whole = pipeline(tiny_case, seed=1).fused
    np.testing.assert_array_equal(whole, pipeline(tiny_case, seed=1).fused)
    assert np.abs(whole - pipeline(tiny_case, seed=2).fused).max() > 1e-4
    slab = pipeline(tiny_case.slices(3, 6), seed=1).fused
    np.testing.assert_allclose(slab, whole[3:6], atol=1e-5)


def test_combining_members_equals_the_call(tiny_case: Case) -> None:
    pipeline = make()
    parts = [pipeline.sample_member(tiny_case, m, "balanced", seed=7) for m in (1, 0)]
    combined = pipeline.combine(parts, tiny_case, "balanced", asked=2, seed=7)
    np.testing.assert_allclose(combined.fused, pipeline(tiny_case, "balanced", seed=7).fused, atol=1e-6)
    lonely = pipeline.combine(parts[:1], tiny_case, "balanced", asked=2, seed=7)
    assert lonely.info["degraded"]
    assert lonely.epistemic.max() == 0


def test_guided_teacher_uses_the_preset_s_steps(tiny_case: Case) -> None:
    teacher = make("teacher", members=1)
    preset = load_presets()["balanced"].changed(steps=3)
    slab = tiny_case.slices(4, 7)
    result = teacher(slab, preset)
    assert result.info["steps"] == 3
    assert not np.array_equal(result.fused, teacher(slab, preset, guided=False).fused)


def test_volumes_run_through_the_same_path(tiny_case: Case) -> None:
    changes = {"denoiser.spatial_dims": 3, "lesion_head.spatial_dims": 3, "crop": (16, 16, 16)}
    result = make("teacher", members=1, **changes)(tiny_case, load_presets()["balanced"].changed(steps=2))
    assert result.fused.shape == tiny_case.shape


def test_an_error_head_comes_back_tells_the_std_and_is_checked(
    tiny_case: Case, tmp_path: Path, error_head: Callable[..., ErrorHead]
) -> None:
    pipeline, slab = make(members=2), tiny_case.slices(4, 8)
    plain = pipeline(slab)
    np.testing.assert_allclose(plain.std, np.sqrt(plain.variances.total), rtol=1e-6)
    pipeline.error_head = error_head(0.1, slope=0.2)
    told = pipeline(slab)
    np.testing.assert_array_equal(told.fused, plain.fused)
    np.testing.assert_array_equal(told.std, pipeline.error_head.std(slab, told.fused, told.variances))
    folder = pipeline.save_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(FusionPipeline.from_pretrained(folder)(slab).std, told.std)
    assert FusionPipeline.from_pretrained(folder, calibrated=False).error_head is None
    file = folder / FILE
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ModelFolderError, match="was changed"):
        FusionPipeline.from_pretrained(folder)


def test_impossible_calls_are_refused(tiny_case: Case) -> None:
    with pytest.raises(ConfigError, match="members"):
        make()(tiny_case, members=5)
    with pytest.raises(ConfigError, match="no such preset"):
        make()(tiny_case, "nonsense")


def test_simulated_companion_is_said(tiny_case: Case) -> None:
    case = replace(tiny_case, attrs={"simulated": True})
    assert make(members=1)(case.slices(0, 2)).info["simulated_companion"]


@pytest.mark.parametrize("guided", [False, True])
def test_no_voxel_is_beyond_both_sources(tiny_case: Case, guided: bool) -> None:
    """Even a fresh network's inventions stay out of F; only findings inside brain are shown brighter than either."""
    fused = make().sample_member(tiny_case, 0, "balanced", steps=3, guided=guided).fused
    low = np.minimum(tiny_case.anatomy, tiny_case.companion)
    high = np.maximum(tiny_case.anatomy, tiny_case.companion)
    slices = [
        torch.from_numpy(image.astype(np.float32))[:, None]
        for image in (tiny_case.companion, tiny_case.brain, tiny_case.bone)
    ]
    painted = findings(*slices)[:, 0].numpy() > 0
    assert np.all(fused >= low - 1e-6)
    assert np.all((fused <= high + 1e-6) | painted)


@pytest.mark.parametrize("modality", ["CT", "NM", "PT"])
def test_only_a_ct_has_findings_to_paint_into_the_brain(tiny_case: Case, modality: str) -> None:
    """A hot spot in brain is blood in a CT and brighter in F than in either source; a tracer's is what it is."""
    companion = tiny_case.companion.copy()
    spot, none = (slice(5, 8), slice(13, 18), slice(11, 16)), tiny_case.lesion * 0
    companion[spot] = 0.4
    case = replace(tiny_case, companion=companion, modalities=("MR", modality), lesion=none, bone=none)
    beyond = float(np.maximum(case.anatomy, companion)[spot].mean()) + 0.1
    for fused in (
        make()(case, align=False).fused,
        *(BASELINES[n](case, load_presets()["balanced"]) for n in ("prior", "refined")),
    ):
        assert (float(fused[spot].mean()) > beyond) == (modality == "CT")
