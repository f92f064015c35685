"""train-baseline by the same runner as our own model on a tiny dataset, and the trained folder among the methods."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from clinfuse_platform.baseline_plan import fresh, trained_kinds
from clinfuse_platform.baseline_verb import KINDS, TRAIN_BASELINE, config_of
from clinfuse_platform.evaluate_methods import expanded
from clinfuse_platform.verb_table import run_verb

from clinfuse.baselines import BASELINES
from clinfuse.baselines.learned import KINDS as KNOWN
from clinfuse.baselines.systems import SYSTEMS
from clinfuse.case import Case
from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    TRAIN_BASELINE.add_arguments(parser)
    return parser.parse_args(["d.zarr", "--run", "peers", *words])


def test_kinds_are_those_there_are() -> None:
    assert set(KINDS) == set(KNOWN) == {system.kind for system in SYSTEMS if system.kind}


def test_impossible_asks_are_refused() -> None:
    assert config_of(asked())["kinds"] == list(KINDS)
    assert config_of(asked("--kind", "conv, ddfm"))["kinds"] == ["conv", "ddfm"]
    for words in (["--kind", "nosuch"], ["--kind", ","], ["--steps", "0"], ["--crop", "20"]):
        with pytest.raises(ConfigError):
            config_of(asked(*words))


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (fresh("conv", seed).state_dict() for seed in (1, 1, 2))
    name = next(iter(first))
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


@pytest.mark.ray
def test_trained_by_the_runner_and_found(
    ray_session: None, tiny_store: Path, tiny_case: Case, tmp_path: Path
) -> None:
    words = [str(tiny_store), "--kind", "conv,diffif,test_time", "--run", "peers", "--storage", str(tmp_path)]
    result = run_verb("train-baseline", [*words, "--steps", "2", "--crop", "24", "--batch-size", "2"])
    folder = Path(result["result"])
    assert result["kinds"] == ["conv", "diffif", "test_time"] == list(trained_kinds(folder))
    assert all(np.isfinite(value) for value in result["last"].values())
    assert len(result["last"]) == 2, "the test-time-trained one takes over the training of conv"
    assert expanded([str(folder), "mean"], "runs") == [
        f"conv={folder}/conv",
        f"diffif={folder}/diffif",
        f"test_time={folder}/test_time",
        "mean",
    ]
    assert expanded(["peers/baselines"], str(tmp_path)) == expanded([str(folder)], "runs")
    fused = BASELINES[f"conv={folder / 'conv'}"](tiny_case, load_presets()["balanced"])
    assert fused.shape == tiny_case.shape
    facts = json.loads((folder / "conv" / "baseline.json").read_text())
    assert facts["steps"] == 2 and facts["parameters"] > 0
    with pytest.raises(ModelFolderError, match="not a clinfuse model"):
        FusionPipeline.from_pretrained(folder)
