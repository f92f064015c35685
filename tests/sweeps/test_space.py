"""Search spaces: round trips, ranges, starting points, refusals that name the nearest word."""

from __future__ import annotations

import pytest
from clinfuse_sweeps.goals import check_limits, feasible, find_goals, losses, parse_limit
from clinfuse_sweeps.overrides import parse_axis, read_overrides
from clinfuse_sweeps.space import (
    SAMPLING_RANGES,
    Axis,
    Space,
    space_around,
    space_from_json,
)

from clinfuse.errors import ConfigError
from clinfuse.presets import RANGES, Preset, load_presets

PRESETS = load_presets()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_lies_in_its_own_space_and_all_starts_are_possible(name: str) -> None:
    space = space_around(PRESETS[name])
    assert space.preset(space.origin()) == PRESETS[name]
    starts = space.starts()
    assert starts[0] == space.origin()
    assert len(starts) == 4
    for point in starts:
        space.preset(point)  # raises if impossible
        assert all(axis.low <= point[axis.name] <= axis.high for axis in space.axes)


def test_neighbours_lean_to_brain_and_to_bone() -> None:
    own, brain, bone, guided = space_around(PRESETS["balanced"]).starts()
    assert brain["alpha"] > own["alpha"] > bone["alpha"]
    assert brain["beta"] < own["beta"] < bone["beta"]
    assert guided["eta"] > own["eta"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_fraction_inverts_at(scale: str) -> None:
    axis = Axis(name="eta", low=0.05, high=20, scale=scale)
    for fraction in (0.0, 0.25, 1.0):
        assert axis.fraction(axis.at(fraction)) == pytest.approx(fraction)
    assert axis.clip(1e6) == 20


def test_weights_are_multiples_kept_within_what_a_preset_allows() -> None:
    space = space_around(Preset(name="p", alpha=8.0, beta=0.0, gamma=0.3))
    axes = {axis.name: axis for axis in space.axes}
    assert axes["alpha"].high == RANGES["alpha"][1]
    assert (axes["beta"].low, axes["beta"].scale) == (0.0, "linear")
    assert axes["gamma"].low == pytest.approx(0.1)


def test_space_survives_json() -> None:
    space = space_around(PRESETS["stroke"], {"steps": Axis(name="steps", low=4, high=50, scale="int")})
    assert space_from_json(space.to_json()) == space
    for text in ("{", "{}", '{"base": {"name": "x"}, "axes": [{"name": "eta"}]}'):
        with pytest.raises(ConfigError):
            space_from_json(text)


def test_overrides_from_the_command_line() -> None:
    overrides = dict(parse_axis(t) for t in ("eta=0.1..5:log", "kappa=fixed", "steps=4..8", "tau_mm=1..3"))
    space = space_around(PRESETS["balanced"], overrides)
    assert "kappa" not in space.names
    assert space.preset({"steps": 6.0, "tau_mm": 1.5, "jitter_mm": 1.0}).steps == 6
    assert {axis.name: (axis.low, axis.high) for axis in space.axes}["eta"] == (0.1, 5)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_everything_can_be_searched_and_each_preset_narrows_it(name: str) -> None:
    preset = PRESETS[name]
    space = space_around(
        preset, read_overrides(["all", "kappa=fixed", "eta=0.1..5"], preset), {"schedule": 1}
    )
    assert {*RANGES, *SAMPLING_RANGES} - {"kappa"} == set(space.names)
    assert space.origin()["schedule"] == 1
    axes = {axis.name: axis for axis in space.axes}
    assert (axes["eta"].low, axes["eta"].high) == (0.1, 5)
    for weight in ("alpha", "lambda_nsd", "tau_mm"):
        low, high = RANGES[weight]
        assert axes[weight].high - axes[weight].low < high - low
    for point in space.starts():
        space.preset(point)
    assert space_from_json(space.to_json()) == space
    with pytest.raises(ConfigError, match="tau_mm"):
        read_overrides(["tau"], preset)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("eta=5..5", "empty"),
        ("eta=5..1", "empty"),
        ("eta=0..1:log", "log needs low > 0"),
        ("alpha=0..99", "<= 10"),
        ("alhpa=0..1", "alpha"),
        ("eta=one..two", "LOW..HIGH"),
        ("eta", "LOW..HIGH"),
        ("eta=nan..1", "empty"),
        ("steps=1..9:log", "int"),
    ],
)
def test_impossible_ranges_are_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_axis(text)


def test_a_space_needs_an_axis_and_no_axis_twice() -> None:
    axis = Axis(name="eta", low=0.1, high=1)
    for axes in ((), (axis, axis)):
        with pytest.raises(ConfigError, match="cannot be used"):
            Space(base=PRESETS["balanced"], axes=axes)


def test_goals_by_name_offer_the_nearest() -> None:
    assert [g.direction for g in find_goals(["brain_ssim", "seam"])] == ["max", "min"]
    with pytest.raises(ConfigError, match="brain_ssim"):
        find_goals(["brain_sim", "seam"])
    with pytest.raises(ConfigError, match="at least 2"):
        find_goals(["seam"])
    with pytest.raises(ConfigError, match="different"):
        find_goals(["seam", "seam"])


def test_losses_turn_what_should_grow() -> None:
    table = losses([{"brain_ssim": 0.8, "seam": 0.1}, {"seam": 0.2}], find_goals(["brain_ssim", "seam"]))
    assert table[0].tolist() == [-0.8, 0.1]
    assert table[1, 0] != table[1, 0]


def test_limits() -> None:
    limit = parse_limit("bone_ssim >= 0.6")
    assert limit.violation(0.5) == pytest.approx(0.1)
    assert limit.violation(float("nan")) == float("inf")
    assert feasible({"bone_ssim": 0.7}, [limit])
    assert not feasible({}, [limit])
    assert str(limit) == "bone_ssim>=0.6"
    for text in ("bone_ssim > 0.6", "bone_ssim>=x", "bone_sim>=1"):
        with pytest.raises(ConfigError):
            parse_limit(text)
    for text in ("brain_ssim>=1.2", "seam<=-0.1", "ece<=-1", "lesion_dice>=1.01"):
        with pytest.raises(ConfigError, match="no result can keep"):
            check_limits([parse_limit(text)])
    check_limits([parse_limit(text) for text in ("seam<=0.3", "seconds_per_case<=1", "brain_ssim<=1")])
    with pytest.raises(ConfigError, match="exclude each other"):
        check_limits([parse_limit("seam>=0.5"), parse_limit("seam<=0.1")])
