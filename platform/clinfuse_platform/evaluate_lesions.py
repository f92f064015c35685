"""What the frozen lesion head finds in the MRI alone, in the companion alone and in F, by kind of lesion."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from clinfuse.report import Section

SOURCES = ("mri", "ct")
SCORES = ("dice", "nsd", "hd95", "false_volume")
TITLE = "Lesion head"
WORDS = (
    "What one and the same frozen lesion head finds in each image, by kind of lesion; mri and ct are the sources "
    "alone, where they were evaluated. false_volume is what it finds where there is no lesion."
)
NOTHING = "No case with a lesion was evaluated: nothing is known of what the lesion head finds."


def cases_table(data: str) -> pd.DataFrame:
    """One line per case of the dataset: manifest columns and the lesion's kind ("none", "not stated", or a kind)."""
    from clinfuse_prep.store import CaseStore

    store = CaseStore(data)
    table = store.manifest()
    return table.assign(
        kind=[
            lesion_kind(store.attributes(c), ml)
            for c, ml in zip(table["case_id"], table["lesion_ml"], strict=True)
        ]
    )


def lesion_kind(attributes: Mapping[str, Any], lesion_ml: float) -> str:
    """The kind of a case's lesion as its source tells it."""
    told = dict(attributes.get("truth") or {}).get("lesion") or {}
    return str(told.get("kind") or ("not stated" if lesion_ml > 0 else "none"))


def lesion_head_table(rows: pd.DataFrame, cases: pd.DataFrame, method: str) -> pd.DataFrame | None:
    """Dice, NSD, HD95 (mm) and falsely found volume (ml) per kind of lesion and image, as `summarise` gives them.

    Args:
        rows: see clinfuse.evaluation.rows.COLUMNS.
        cases: from `cases_table`.
        method: the method whose F is shown beside the sources.

    Returns:
        A summary whose methods are "<kind>: <image>", all kinds together first; None if no lesion was scored.
    """
    from clinfuse.evaluation import summarise

    images = dict.fromkeys((*SOURCES, method))
    scored = rows[rows["metric"].isin(SCORES) & rows["method"].isin(images)]
    if not (scored["metric"].eq("dice") & scored["status"].eq("ok")).any():
        return None
    kinds = (
        scored["case_id"].map(dict(zip(cases["case_id"], cases["kind"], strict=True))).fillna("not stated")
    )
    parts = []
    for kind in ("all", *sorted(set(kinds))):
        of_kind = scored if kind == "all" else scored[kinds == kind]
        parts += [of_kind[of_kind["method"] == i].assign(method=f"{kind}: {i}") for i in images]
    return summarise(pd.concat(parts))


def lesion_head_markdown(
    rows: pd.DataFrame, cases: pd.DataFrame, method: str, *, judged: bool = False
) -> str:
    """The table with its words, for table.md and the card; arguments as of `lesion_head_section`."""
    from clinfuse.evaluation import to_markdown

    table = lesion_head_table(rows, cases, method)
    if table is None:
        return NOTHING
    shown = to_markdown(table).replace("| method |", "| kind of lesion: image |", 1)
    return f"{words(judged)}\n\n{shown}"


def lesion_head_section(
    rows: pd.DataFrame, cases: pd.DataFrame, method: str, *, judged: bool = False
) -> list[Section]:
    """The table as a section of the report; none if no lesion was scored.

    Args:
        rows, cases, method: as of `lesion_head_table`.
        judged: the lesion head is another model's (`--judge`), not the method's own.
    """
    from clinfuse.evaluation import to_html
    from clinfuse.report import Section

    table = lesion_head_table(rows, cases, method)
    return [] if table is None else [Section(TITLE, f"<p>{escape(words(judged))}</p>{to_html(table)}")]


def words(judged: bool) -> str:
    """What the table shows, and whose lesion head it is."""
    return f"{WORDS} The lesion head is another model's (--judge)." if judged else WORDS
