"""The training job of the learned baselines: one phase per method, by the same runner and loop as our own model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse import RESEARCH_USE, __version__
from clinfuse_platform.phases import Modules, Phase, Plan, Work
from clinfuse_platform.storage import MODEL_INDEX, publish_folder

if TYPE_CHECKING:
    from clinfuse.baselines.learned import Learned

JOB = "baselines"
CLASS_NAME = "clinfuse.baselines"


def baseline_plan(work: Work) -> Plan:
    """Each kind in `config.kinds` in turn, all on the same crops; exports a folder with one subfolder per kind.

    Kinds that share one training (`Learned.trained_as`) are trained once.

    Settings: config with kinds, steps, crop, batch_size, learning_rate, seed; data; data_hash.
    """
    from clinfuse_prep.reader import ShardReader

    from clinfuse.baselines.learned import KINDS

    config = work.settings["config"]
    reader = ShardReader(
        work.settings["data"],
        split="train",
        crop=(config["crop"], config["crop"]),
        batch_size=config["batch_size"],
        spatial_dims=2,
        seed=config["seed"],
        rank=work.rank,
        world_size=work.world_size,
    )
    phases = tuple(
        Phase(
            name=kind,
            steps=config["steps"],
            learning_rate=config["learning_rate"],
            seed=config["seed"] * 10 + 1,
            build=lambda done, kind=kind: fresh(kind, config["seed"]),  # type: ignore[misc]
            loss=lambda done: lambda runner, batch, generator: runner(batch, generator),
            batches=lambda done: reader,
            cases=reader.cases_at,
        )
        for kind in dict.fromkeys(KINDS[kind].trained_as or kind for kind in config["kinds"])
    )
    facts = {"steps": config["steps"], "seed": config["seed"], "data_hash": work.settings["data_hash"]}
    return Plan(phases=phases, export=lambda done, folder: export(done, folder, config["kinds"], facts))


def fresh(kind: str, seed: int) -> Learned:
    """The network of a kind with the weights of that seed."""
    import torch

    from clinfuse.baselines.learned import KINDS, LearnedConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind](LearnedConfig())


def export(done: Modules, folder: Path, kinds: Sequence[str], facts: dict[str, Any]) -> None:
    """Write every kind asked for into `folder/<kind>` and the index that marks the folder complete."""
    from clinfuse.baselines.learned import KINDS, save_learned

    aside = folder.with_name(f".{folder.name}.partial")
    for kind in kinds:
        trained = done[KINDS[kind].trained_as or kind].cpu()
        module = KINDS[kind](trained.config)
        module.load_state_dict(trained.state_dict())
        save_learned(module, aside / kind, **facts)
    index = {"_class_name": CLASS_NAME, "_library": f"clinfuse {__version__}", "kinds": list(kinds)}
    (aside / MODEL_INDEX).write_text(
        json.dumps({**index, "notice": RESEARCH_USE}, indent=2), encoding="utf-8"
    )
    publish_folder(aside, UPath(folder))


def trained_kinds(folder: Path) -> dict[str, Path]:
    """The baselines in a folder that `export` wrote, by kind; empty if it is none."""
    try:
        index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {kind: folder / kind for kind in index["kinds"]} if index.get("_class_name") == CLASS_NAME else {}
