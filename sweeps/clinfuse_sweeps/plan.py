"""What a sweep is going to do, as data: written to sweep.json, checked again when it is resumed or compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clinfuse_platform.storage import write_atomic

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ConfigError, InputError
from clinfuse_sweeps.goals import DEFAULT_OBJECTIVES, Goal, Limit, check_limits, find_goals, parse_limit
from clinfuse_sweeps.samplers import SAMPLERS
from clinfuse_sweeps.space import Space, space_from_json

FORMAT = 1
QUESTION = ("objectives", "limits", "sampler", "halving", "rungs")  # how a sweep searches, besides its spaces


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One sweep.

    Attributes:
        spaces: by preset name, what is searched.
        trials: trials per preset, the preset's own position included.
        objectives: names of at least two goals, optimised together.
        limits: constraints a trial must keep to be on a front.
        sampler: one of SAMPLERS.
        seed: of the samplers and of the fusion's noise.
        slots: trials that run at the same time.
        cpus, gpus: share of the machine that one slot holds.
        halving: stop a trial once it is dominated with confidence over the cases seen.
        rungs: how often a training trial is measured on its way (ASHA); 1 trains every trial whole.
        facts: JSON-able provenance: model hash, case ids, simulated, slices, steps.

    Raises:
        ConfigError: impossible values.
    """

    spaces: Mapping[str, Space]
    trials: int
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    limits: tuple[Limit, ...] = ()
    sampler: str = "auto"
    seed: int = 0
    slots: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    halving: bool = False
    rungs: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        find_goals(self.objectives)
        check_limits(self.limits)
        if self.sampler not in SAMPLERS:
            raise ConfigError("no such sampler", expected=f"one of {', '.join(SAMPLERS)}", found=self.sampler)
        if not self.spaces or self.trials < 1 or self.slots < 1:
            raise ConfigError(
                "the sweep has nothing to do",
                expected="at least one preset, one trial and one slot",
                found=f"{len(self.spaces)} presets, trials={self.trials}, slots={self.slots}",
            )
        if self.rungs < 1 or (self.rungs > 1 and self.halving):
            raise ConfigError(
                "trials are stopped early over rungs or over cases",
                expected="rungs >= 1, and halving only with 1",
                found=f"rungs={self.rungs}, halving={self.halving}",
            )

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The objectives as goals."""
        return find_goals(self.objectives)

    @property
    def params(self) -> tuple[str, ...]:
        """Names of all values searched for any preset."""
        return tuple(dict.fromkeys(name for space in self.spaces.values() for name in space.names))

    def save(self, folder: Path) -> Path:
        """Write sweep.json."""
        spaces = {name: json.loads(space.to_json()) for name, space in self.spaces.items()}
        data: dict[str, Any] = {
            "format": FORMAT,
            "software": f"clinfuse {__version__}",
            "notice": RESEARCH_USE,
            **{k: v for k, v in asdict(self).items() if k not in ("spaces", "limits")},
            "limits": [str(limit) for limit in self.limits],
            "spaces": spaces,
        }
        path = folder / "sweep.json"
        write_atomic(path, json.dumps(data, indent=1))
        return path


def check_continues(old: Plan, new: Plan) -> None:
    """Refuse to go on with a sweep under another question: finished trials would not be comparable.

    More presets, more trials, and other slots, CPUs or GPUs are fine.

    Raises:
        ConfigError: what differs, with both values.
    """
    different: dict[str, tuple[object, object]] = {
        name: (getattr(old, name), getattr(new, name))
        for name in (*QUESTION, "seed")
        if getattr(old, name) != getattr(new, name)
    }
    for key in sorted({*old.facts, *new.facts}):
        if old.facts.get(key) != new.facts.get(key):
            different[key] = (old.facts.get(key), new.facts.get(key))
    for name in set(old.spaces) & set(new.spaces):
        if old.spaces[name] != new.spaces[name]:
            different[f"space of {name}"] = (old.spaces[name].to_json(), new.spaces[name].to_json())
    missing = sorted(set(old.spaces) - set(new.spaces))
    if missing:
        different["presets"] = (", ".join(old.spaces), ", ".join(new.spaces))
    if different:
        raise ConfigError(
            "the sweep in this folder asked something else",
            expected="; ".join(f"{name}={_short(was)}" for name, (was, _) in different.items()),
            found="; ".join(f"{name}={_short(now)}" for name, (_, now) in different.items()),
            todo="repeat its options to go on with it, or use a new --out",
        )


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "…"


def load_plan(folder: Path) -> Plan:
    """The plan of a sweep folder.

    Raises:
        InputError: no sweep.json, not JSON, or written in another format version.
    """
    try:
        data = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        version = data["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "this is no sweep folder",
            expected="a sweep.json",
            found=type(error).__name__,
            todo="give the folder that `clinfuse sweep --out` wrote",
        ) from error
    if version != FORMAT:
        raise InputError(
            "the sweep folder is of another version",
            expected=f"format {FORMAT}",
            found=f"format {version}",
            todo="open it with the clinfuse version named in its sweep.json",
        )
    spaces = {name: space_from_json(json.dumps(space)) for name, space in data["spaces"].items()}
    plain = {
        k: v for k, v in data.items() if k in Plan.__dataclass_fields__ and k not in ("spaces", "limits")
    }
    plain["objectives"] = tuple(plain["objectives"])
    return Plan(**plain, spaces=spaces, limits=tuple(parse_limit(text) for text in data["limits"]))
