"""Presets: the table is complete, the vector is scale-free, impossible values are refused with the range."""

from pathlib import Path

import pytest

from clinfuse.errors import ConfigError
from clinfuse.presets import Preset, dump_presets, find_preset, load_presets, parse_presets

NAMES = {"balanced", "bone_tumor", "soft_tissue_tumor", "skull_base", "hemorrhage", "stroke", "rt_planning"}


def test_built_in_table() -> None:
    presets = load_presets()
    assert set(presets) == NAMES
    assert all(p.description for p in presets.values())
    assert presets["bone_tumor"].beta == max(presets["bone_tumor"].vector[:3]) * 4.5


def test_vector_ignores_scale() -> None:
    one = Preset(name="a", alpha=1, beta=2, gamma=1)
    two = one.changed(alpha=2, beta=4, gamma=2)
    assert one.vector == pytest.approx(two.vector)
    assert sum(one.vector[:3]) == pytest.approx(1)
    assert sum(one.vector[3:]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1}, "0 <= alpha <= 10"),
        ({"tau_mm": 0}, "0.1 <= tau_mm <= 20"),
        ({"eta": float("nan")}, "0 <= eta <= 100"),
        ({"steps": 0}, "1 <= steps <= 1000"),
        ({"steps": 2.5}, "whole"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "no region counts"),
        ({"omega": 1}, "unknown preset value"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preset(name="x").changed(**change)


def test_user_file_adds_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine:\n  beta: 3.0\nstroke:\n  alpha: 0.5\n")
    presets = load_presets(file)
    assert presets["mine"].beta == 3.0
    assert presets["stroke"].alpha == 0.5
    assert set(presets) == NAMES | {"mine"}


def test_yaml_round_trip() -> None:
    presets = load_presets()
    assert parse_presets(dump_presets(presets)) == presets


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="balanced"):
        find_preset(load_presets(), "nonsense")


def test_not_yaml() -> None:
    with pytest.raises(ConfigError, match="YAML"):
        parse_presets("a: [1,")
