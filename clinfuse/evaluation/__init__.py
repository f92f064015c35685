"""Evaluation of fused cases: rows per case, summaries with intervals, objectives for sweeps."""

from clinfuse.evaluation.case import evaluate_case
from clinfuse.evaluation.goals import GOALS, standing, standing_line, with_goals
from clinfuse.evaluation.lesions import lesion_probability, segment_lesion
from clinfuse.evaluation.objectives import check_fused, objectives
from clinfuse.evaluation.paired import paired_tests
from clinfuse.evaluation.ranking import rank_stability
from clinfuse.evaluation.rows import COLUMNS, LOWER_IS_BETTER, failed_rows
from clinfuse.evaluation.summary import bootstrap_interval, summarise
from clinfuse.evaluation.tables import to_html, to_markdown
from clinfuse.evaluation.verdicts import comparison_html, decided, explanation, rank_table, verdicts

__all__ = [
    "COLUMNS",
    "GOALS",
    "LOWER_IS_BETTER",
    "bootstrap_interval",
    "check_fused",
    "comparison_html",
    "decided",
    "evaluate_case",
    "explanation",
    "failed_rows",
    "lesion_probability",
    "objectives",
    "paired_tests",
    "rank_stability",
    "rank_table",
    "segment_lesion",
    "standing",
    "standing_line",
    "summarise",
    "to_html",
    "to_markdown",
    "verdicts",
    "with_goals",
]
