"""The search: one Optuna study per preset behind Tune's searcher interface, all in one journal on disk.

The journal is the memory of a sweep: a trial counts as done when it is told there, and a resumed sweep builds
everything else (quotas, sampler state, tables) from it. Promises:
- one driver at a time (`sole_driver` holds the lock; the operating system frees it when the driver dies);
- a trial that was running when the driver died is marked interrupted, and its values are tried again;
- each suggestion is drawn from (seed, preset, number of the trial), so an interruption does not change the stream.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from clinfuse.errors import ClinfuseError
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.samplers import AXES, make_sampler
from clinfuse_sweeps.space import Space
from clinfuse_sweeps.trainable import stream_seed
from clinfuse_sweeps.trials import RECORD

JOURNAL = "journal.log"


@contextmanager
def sole_driver(folder: Path) -> Iterator[None]:
    """Hold the sweep folder for this process.

    Raises:
        ClinfuseError: another driver is at work on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".driver.lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ClinfuseError(
                "another driver works on this sweep: wait for it, or use another --out"
            ) from error
        yield


def open_storage(folder: Path) -> JournalStorage:
    """The sweep's journal; `optuna-dashboard <folder>/journal.log` shows it live."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


class PresetStudy(OptunaSearch):
    """OptunaSearch of one preset: constraints handed on, facts of each trial kept in the journal."""

    def __init__(self, space: Space, plan: Plan, storage: JournalStorage) -> None:
        self.plan, self.preset, self.starts = plan, space.base.name, space.starts()
        super().__init__(
            space=space.distributions(),
            metric=[goal.name for goal in plan.goals],
            mode=[goal.direction for goal in plan.goals],
            study_name=self.preset,
            storage=storage,
            sampler=self._sampler_for(0),
        )
        study: Any = self._ot_study
        self.study: Any = study
        if study.user_attrs.get(AXES) != list(space.names):
            study.set_user_attr(AXES, list(space.names))
        self._repair()
        self.asked = sum(1 for t in self._trials() if not _interrupted(t) and t.state != TrialState.WAITING)
        self.running = 0

    def _sampler_for(self, number: int) -> Any:
        plan = self.plan
        seed = stream_seed(plan.seed, self.preset, number)
        return make_sampler(
            plan.sampler,
            seed,
            trials=plan.trials,
            starts=len(self.starts),
            number=number,
            order=stream_seed(plan.seed, self.preset, -1),
        )

    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _repair(self) -> None:
        """Enqueue the preset's own position and neighbours once; put interrupted trials back into the queue."""
        if not self._trials():
            for index, point in enumerate(self.starts[: self.plan.trials]):
                origin = "preset" if index == 0 else "neighbour"
                self.study.enqueue_trial(point, user_attrs={"origin": origin})
        for trial in self._trials():
            if trial.state == TrialState.RUNNING:
                self._settle(trial)

    def _settle(self, trial: Any) -> None:
        """A trial that a dead driver left running: told if its facts were written, else marked and queued again."""
        storage, key = self.study._storage, trial._trial_id
        record = trial.user_attrs.get(RECORD)
        if record is not None and record["state"] != "failed":
            values = [record["metrics"][name] for name in self.plan.objectives]
            storage.set_trial_state_values(key, TrialState.COMPLETE, values)
            return
        if record is None:
            storage.set_trial_user_attr(key, RECORD, {"state": "interrupted"})
            point = {
                **trial.system_attrs.get("fixed_params", {}),
                **trial.params,
            }  # killed before or after its draw
            if point:
                origin = trial.user_attrs.get("origin", "search")
                self.study.enqueue_trial(point, user_attrs={"origin": origin})
        storage.set_trial_state_values(key, TrialState.FAIL)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Values of the next trial, with the preset's name and the trial's number."""
        self.study.sampler = self._sampler_for(self.asked)
        params = super().suggest(trial_id)
        self.asked, self.running = self.asked + 1, self.running + 1
        return {"preset": self.preset, "number": self._ot_trials[trial_id].number, "params": params}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write the trial's facts, then tell its objectives; an error or a missing objective is a failed trial."""
        trial: Any = self._ot_trials.pop(trial_id)
        self.running -= 1
        text: Any = (result or {}).get(RECORD)
        record: dict[str, Any] = json.loads(text) if text else {"state": "failed", "error": ""}
        if error:
            record |= {"state": "failed", "error": record.get("error") or "the worker died"}
        if record["state"] == "running":  # the scheduler stopped it
            record["state"] = "stopped"
        metrics = record.get("metrics", {})
        values = [metrics.get(name, math.nan) for name in self.plan.objectives]
        lost = [name for name, v in zip(self.plan.objectives, values, strict=True) if not math.isfinite(v)]
        if record["state"] != "failed" and lost:
            record |= {"state": "failed", "error": f"no finite value of {', '.join(lost)}"}
        for limit in self.plan.limits:
            if record["state"] != "failed":
                broken = limit.violation(metrics.get(limit.metric, math.nan))
                without = max(1.0, abs(limit.bound))  # no value at all: as bad as the bound itself
                trial.set_constraint(str(limit), broken if math.isfinite(broken) else without)
        trial.set_user_attr(RECORD, record)
        if record["state"] == "failed":
            self.study.tell(trial, state=TrialState.FAIL)
        else:  # a stopped trial's means over the cases seen still teach the sampler
            self.study.tell(trial, values)

    def records(self) -> list[dict[str, Any]]:
        """Facts of all trials told so far."""
        return [trial.user_attrs[RECORD] for trial in self._trials() if RECORD in trial.user_attrs]


def _interrupted(trial: Any) -> bool:
    return trial.user_attrs.get(RECORD, {}).get("state") == "interrupted"


class PresetSearch(Searcher):
    """All presets' studies as one searcher, so that one set of resident actors serves them all.

    The preset that has asked for the fewest trials comes next. While several presets are at work, no preset runs
    more than its share of the slots at once: with as many presets as slots each study is sequential, which makes
    it repeatable and spares the sampler guesses about trials still running.
    """

    def __init__(self, studies: Mapping[str, PresetStudy], *, trials: int, slots: int) -> None:
        super().__init__()
        self.studies, self.trials, self.slots = dict(studies), trials, slots
        self.owner: dict[str, PresetStudy] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        """The studies know their objectives already."""
        return True

    @property
    def left(self) -> int:
        """Trials not yet asked for."""
        return sum(max(self.trials - study.asked, 0) for study in self.studies.values())

    def suggest(self, trial_id: str) -> Any:
        """The next trial, FINISHED when every preset has its trials, None while all have their share running."""
        open_ = [study for study in self.studies.values() if study.asked < self.trials]
        if not open_:
            return Searcher.FINISHED
        share = math.ceil(self.slots / len(self.studies))
        ready = [study for study in open_ if study.running < share]
        if not ready:
            return None
        study = min(ready, key=lambda s: s.asked)
        self.owner[trial_id] = study
        return study.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand the result to the preset's study."""
        self.owner.pop(trial_id).on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the journal holds the state."""
        Path(checkpoint_path).write_text("the state is in the journal\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the studies were rebuilt from the journal."""
