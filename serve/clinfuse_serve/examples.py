"""Cases that a service offers for trying out: simulated here when asked, or those of a prepared store."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol

from clinfuse.case import Case
from clinfuse.errors import InputError
from clinfuse_serve.schemas import ExampleRow

MAX_EXAMPLES = 12
SPACING_MM = (2.0, 2.0, 2.0)
SEED = 4
SIMULATED = {
    "simulated-tumour": "Brain tumour",
    "simulated-bone-tumour": "Bone tumour",
    "simulated-haemorrhage": "Haemorrhage",
    "simulated-stroke": "Stroke",
}


class Examples(Protocol):
    """Cases by name."""

    def names(self) -> list[str]:
        """All names."""

    def rows(self) -> list[ExampleRow]:
        """What there is."""

    def case(self, name: str) -> Case:
        """One case; InputError with the names there are."""


def open_examples(store: str | None) -> Examples:
    """Those of a prepared store, or the simulated ones.

    Raises:
        InputError: there is no such store, or it is not finished.
    """
    return SimulatedExamples() if store is None else StoreExamples(store)


class SimulatedExamples:
    """Patients of the embedded cohort, one a kind of lesion; each is made once, in a few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Case] = {}

    def names(self) -> list[str]:
        """One a kind of lesion."""
        return list(SIMULATED)

    def rows(self) -> list[ExampleRow]:
        """One row a kind of lesion."""
        return [ExampleRow(id=name, title=title, simulated=True) for name, title in SIMULATED.items()]

    def case(self, name: str) -> Case:
        """The simulated patient; raises InputError if there is none of that name."""
        if name not in SIMULATED:
            raise _unknown(name, list(SIMULATED))
        with self._lock:
            if name not in self._made:
                self._made[name] = _simulate(name)
            return self._made[name]


class StoreExamples:
    """Cases of a prepared store: its test cases, or all if it has none.

    Raises:
        InputError: there is no such store, or it is not finished.
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self._open().manifest_bytes()  # without one the dataset is not whole
        self._rows: list[ExampleRow] | None = None

    def names(self) -> list[str]:
        """The test cases, or all if there are none."""
        return list(self._open().case_ids("test")) or list(self._open().case_ids())

    def rows(self) -> list[ExampleRow]:
        """Up to twelve of them, for a list on a page."""
        if self._rows is None:
            self._rows = [self._row(name) for name in self.names()[:MAX_EXAMPLES]]
        return self._rows

    def case(self, name: str) -> Case:
        """One case, read from the store; raises InputError if there is none of that name."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name not in self.names():
            raise _unknown(name, self.names()[:MAX_EXAMPLES])
        return self._open().read(name)

    def _open(self) -> Any:
        from clinfuse_prep.store import CaseStore

        return CaseStore(self.store)

    def _row(self, name: str) -> ExampleRow:
        simulated = bool(self._open().read(name).attrs.get("simulated", False))
        return ExampleRow(id=name, title=name, simulated=simulated)


def _unknown(name: str, names: list[str]) -> InputError:
    return InputError("no such example", expected=f"one of {', '.join(names)}", found=repr(name[:80]))


def _simulate(name: str) -> Case:
    """Patients 0 to 3 of a cohort cycle through the kinds of lesion in the table's order."""
    from clinfuse_prep.cohort.make import write_patient
    from clinfuse_prep.cohort.patient import simulate_patient
    from clinfuse_prep.prepare import prepare_pair

    with tempfile.TemporaryDirectory(prefix="clinfuse-") as folder:
        patient = simulate_patient(SEED, list(SIMULATED).index(name), SPACING_MM)
        files = {
            path.name.split(".")[0]: path for path in write_patient(patient, Path(folder)).glob("*.nii.gz")
        }
        pair = files["mr"], files["ct_aligned"]
        masks: dict[str, Any] = {roi: files[roi] for roi in ("brain", "bone", "lesion")}
        return prepare_pair(*pair, **masks, case_id=name.replace("-", ""))
