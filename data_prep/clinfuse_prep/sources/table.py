"""Layout `table`: a CSV or Parquet file with a row per case and a column per role.

Columns: `anatomy`, `companion`; optional `patient`, `case`, `aligned_companion`, `brain`, `bone`, `lesion`,
`companion_modality`. Paths are relative to the table's folder and must stay inside it, unless absolute.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clinfuse.errors import InputError
from clinfuse_prep.sources.case import ROLES, SourceCase

MODALITIES = ("CT", "SPECT", "PET", "NM")
MOST_SHOWN = 5


def matches(source: Path) -> bool:
    """Whether the source is a table file."""
    return source.is_file() and source.suffix.lower() in (".csv", ".tsv", ".parquet")


def find(source: Path) -> list[SourceCase]:
    """One case per row.

    Raises:
        InputError: unreadable table, a missing column, or a case of a patient that is named twice.
    """
    if not matches(source):
        return []
    table = _read(source)
    missing = sorted({"anatomy", "companion"} - set(table.columns))
    if missing:
        raise InputError(
            "the table lacks columns",
            expected="anatomy and companion",
            found=f"no {' and no '.join(missing)}",
            todo="name the columns so; see `clinfuse prep --help`",
        )
    cases = [
        _case(source.parent, number, row) for number, row in enumerate(table.to_dict(orient="records"), 1)
    ]
    _check_named_once(cases)
    return cases


def _check_named_once(cases: Sequence[SourceCase]) -> None:
    rows: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(cases, 1):
        rows.setdefault((case.patient, case.name), []).append(number)
    twice = [numbers for numbers in rows.values() if len(numbers) > 1]
    if twice:
        raise InputError(
            "the table names a case of one patient twice",
            expected="another `case` in each row of a patient",
            found="; ".join(f"rows {' and '.join(map(str, numbers))}" for numbers in twice[:MOST_SHOWN]),
            todo="give each examination its own `case`, leave the column away, or remove the repeated row",
        )


def _read(source: Path) -> pd.DataFrame:
    try:
        if source.suffix.lower() == ".parquet":
            table = pd.read_parquet(source)
            return table.astype(object).where(table.notna(), "").astype(str)
        separator = "\t" if source.suffix.lower() == ".tsv" else ","
        return pd.read_csv(source, dtype=str, sep=separator, keep_default_na=False)
    except (ValueError, TypeError, OSError, UnicodeError) as error:
        raise InputError(
            "the table cannot be read",
            expected="CSV with a header line, or Parquet",
            found="something else",
            todo="save it again as UTF-8 CSV",
        ) from error


def _case(folder: Path, number: int, row: Mapping[Hashable, Any]) -> SourceCase:
    files, notes = {}, []
    for role in ROLES:
        text = str(row.get(role, "") or "").strip()
        if not text:
            continue
        path = _inside(folder, text)
        if path is None:
            notes.append(
                (
                    "warning",
                    f"the table's path for {role} was not followed",
                    "a path inside the table's folder, or an absolute one",
                    "a relative path that leads out of it",
                    "use an absolute path",
                )
            )
        else:
            files[role] = (path,)
    modality = str(row.get("companion_modality", "") or "CT").upper()
    patient = str(row.get("patient", "") or f"row {number}")
    return SourceCase(
        patient=patient,
        name=str(row.get("case", "") or f"{patient} row {number}"),
        files=files,
        modalities=("MR", modality if modality in MODALITIES else "CT"),
        notes=tuple(notes),
    )


def _inside(folder: Path, text: str) -> Path | None:
    """The path meant, or None when a relative one leads out of the folder (also through links)."""
    path = Path(text)
    if path.is_absolute():
        return path
    try:
        full = (folder / path).resolve()
    except (OSError, RuntimeError):
        return None
    return full if full.is_relative_to(folder.resolve()) else None
