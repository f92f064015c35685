"""Features seen once give, for every preset, bit for bit the draw that sees anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clinfuse.case import Case
from clinfuse.combine import MemberSample
from clinfuse.errors import ConfigError
from clinfuse.features import as_tensor, vectors_of
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import build_denoiser, build_lesion_head, recipe


def make(spatial_dims: int = 2, kind: str = "student") -> FusionPipeline:
    """Two members whose weights are far from their start, so that encoders and network matter."""
    crop = (16,) * spatial_dims
    dims = {"denoiser.spatial_dims": spatial_dims, "lesion_head.spatial_dims": spatial_dims, "crop": crop}
    config = recipe("cpu-debug", **dims, **{"denoiser.channels": (8, 16), "lesion_head.channels": (4, 8)})
    generator = torch.Generator().manual_seed(5)
    members = [build_denoiser(config, member=i) for i in range(2)]
    with torch.no_grad():
        for weights in (w for member in members for w in member.parameters()):
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.05)
    return FusionPipeline(
        members=members,
        lesion_head=build_lesion_head(config),
        diffusion=config.diffusion,
        kind=kind,
        student_steps=2,
    )


def assert_same(one: MemberSample, other: MemberSample) -> None:
    for name in ("fused", "variance", "registration"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("residual_energy", "member", "sample", "jitter", "steps"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("shape", [(12, 32, 28), (12, 31, 27)], ids=["divisible", "padded"])
def test_every_preset_from_the_same_features(tiny_case: Case, shape: tuple[int, int, int]) -> None:
    cut = tuple(slice(0, n) for n in shape)
    arrays = {name: getattr(tiny_case, name)[cut] for name in ("anatomy", "companion", *tiny_case.masks)}
    case, pipeline = replace(tiny_case, **arrays), make()
    features = pipeline.encode(case, 1)
    seen = set()
    for name in pipeline.presets:
        anew = pipeline.sample_member(case, 1, name, seed=3)
        assert_same(pipeline.sample_member(case, 1, name, seed=3, features=features), anew)
        seen.add(anew.fused.tobytes())
    assert len(seen) == len(pipeline.presets)
    again = pipeline.sample_member(case, 1, "balanced", seed=9, sample_index=2, steps=3, features=features)
    assert_same(again, pipeline.sample_member(case, 1, "balanced", seed=9, sample_index=2, steps=3))


def test_volumes_guidance_and_jitter_too(tiny_case: Case) -> None:
    volumes = make(3)
    features = volumes.encode(tiny_case, 0)
    assert_same(
        volumes.sample_member(tiny_case, 0, "stroke", features=features),
        volumes.sample_member(tiny_case, 0, "stroke"),
    )
    teacher, slab = make(kind="teacher"), tiny_case.slices(4, 6)
    preset = teacher.resolve_preset("bone_tumor").changed(steps=2)
    for jitter in (0, 1):
        features = teacher.encode(slab, 0, seed=4, jitter_index=jitter)
        options = {"seed": 4, "jitter_index": jitter, "guided": True}
        assert_same(
            teacher.sample_member(slab, 0, preset, features=features, **options),
            teacher.sample_member(slab, 0, preset, **options),
        )


def test_slices_drawn_together_from_features(tiny_case: Case) -> None:
    pipeline = make()
    slices = [tiny_case.slices(k, k + 1) for k in (3, 7, 5)]
    presets = [pipeline.resolve_preset(name) for name in ("balanced", "stroke", "bone_tumor")]
    asks = list(zip(slices, presets, range(3), strict=True))
    known = [pipeline.encode(slices[0], 1), None, pipeline.encode(slices[2], 1)]
    anew = pipeline.sample_together(asks, 1)
    for one, other in zip(pipeline.sample_together(asks, 1, features=known), anew, strict=True):
        assert_same(one, other)


def test_features_of_something_else_are_refused(tiny_case: Case) -> None:
    pipeline = make()
    features = pipeline.encode(tiny_case, 0)
    for case, options in (
        (tiny_case, {"member": 1}),
        (tiny_case.slices(0, 3), {"member": 0}),
        (tiny_case, {"member": 0, "jitter_index": 1}),
    ):
        with pytest.raises(ConfigError, match="features of something else"):
            pipeline.sample_member(case, features=features, **options)


def test_bytes_count_shared_memory_once(tiny_case: Case) -> None:
    pipeline = make()
    one, two = (pipeline.encode(tiny_case.slices(0, depth), 0) for depth in (1, 2))
    slice_bytes = tiny_case.anatomy[0].nbytes
    assert 10 * slice_bytes < one.nbytes < 60 * slice_bytes
    assert two.nbytes == pytest.approx(2 * one.nbytes, rel=0.01)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken_without_a_warning(tiny_case: Case) -> None:
    for name in ("anatomy", "companion", *tiny_case.masks):
        getattr(tiny_case, name).flags.writeable = False
    make()(tiny_case.slices(0, 1), jitters=1, align=False)
    assert as_tensor(np.zeros(2, np.float32)).shape == (2,)


def test_of_a_tracer_beta_counts_twice() -> None:
    preset = load_presets()["bone_tumor"]
    vectors = vectors_of([preset, preset], torch.tensor([1.0, 0.0]))
    double = preset.changed(beta=2 * preset.beta)
    torch.testing.assert_close(vectors, torch.tensor([preset.vector, double.vector]))
