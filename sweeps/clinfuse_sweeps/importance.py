"""Which searched value moves which objective: Optuna's importance, computed from a table of trials."""

from __future__ import annotations

import pandas as pd

from clinfuse_sweeps.goals import Goal
from clinfuse_sweeps.space import Space

LEAST_TRIALS = 12


def importance(table: pd.DataFrame, space: Space, goal: Goal, *, seed: int = 0) -> dict[str, float]:
    """Share of the goal's variance that each searched value explains, summing to 1; empty if too few trials.

    Args:
        table: trials of one preset.
        space: its search space.
        goal: the objective.
        seed: of the random forest.

    Reference: Hutter, Hoos, Leyton-Brown 2014 (fANOVA), as Optuna computes it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    rows = table[(table["state"] == "complete") & table[goal.name].notna()]
    rows = rows[rows[list(space.names)].notna().all(axis=1)]
    if len(rows) < LEAST_TRIALS or rows[goal.name].nunique() < 2:
        return {}
    study = optuna.create_study()
    distributions = space.distributions()
    for record in rows.to_dict("records"):
        params = {axis.name: axis.clip(record[axis.name]) for axis in space.axes}
        trial = optuna.trial.create_trial(
            params=params, distributions=distributions, value=float(record[goal.name])
        )
        study.add_trial(trial)
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}
