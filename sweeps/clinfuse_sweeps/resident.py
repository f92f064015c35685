"""Workers that stay: Tune keeps every trial's actor for the next trial, so that model and cases are loaded once.

`reuse_actors` alone keeps a single idle actor while no trial is waiting, and a search that suggests one trial when
another ends never has one waiting: with two slots every second trial would load the model anew (seen: 1.9 s of
compute per trial beside 10 s of loading). So Tune's cache is told to hold one actor per slot.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class ResidentWorkers(FIFOScheduler):
    """Runs trials in the order of their suggestion, on workers that stay for the whole sweep.

    Args:
        slots: trials at a time, and so workers to keep.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots, self._told = slots, False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """With the first trial, whose resources all others share, make room for the workers."""
        super().on_trial_add(tune_controller, trial)
        if not self._told:
            self._told = True
            # Tune has no public setting for it; Ray is pinned to the version in which this was read and tried
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, self.slots)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first waiting trial without a worker: one whose own worker is starting waits for that one.

        Tune would give it the first worker that is free and throw the starting one away, so that short trials
        never got a second slot and loaded again and again in vain.
        """
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PENDING and trial not in tune_controller._trial_to_actor:
                return trial
        return None
