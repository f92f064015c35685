"""Sweeps: search spaces, Tune with Optuna, Pareto fronts, reports."""
