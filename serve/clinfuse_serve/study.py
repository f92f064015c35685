"""Reader study: who sees what in which order, blinded; ratings as Parquet, one file an answer, so that nothing is lost.

Every (case, arm) is one item. A reader sees every case once per round, in an order of his own drawn from the study's
seed and his pseudonym; which arm a case shows in a round is drawn too. The page and its requests name only the item's
place in that order. An answer becomes one small Parquet file, written aside and renamed: replicas and readers never
wait for each other, an item is answered once, and a study goes on where it stopped. Beside the answers a hidden file
an item tells by which model version its picture was made, as another replica may take the answer.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import yaml
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ConfigError, InputError

READER = re.compile(r"[a-z0-9]{1,32}")
MAX_ITEMS = 2000


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of fusing that is compared: a preset of the served model, or a method of clinfuse.baselines."""

    name: str
    preset: str = "balanced"
    method: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the study file says.

    Attributes:
        title: shown to readers.
        results: folder for the answers (on storage that all replicas share).
        arms: what is compared, blinded; at least two.
        questions: each rated 1 to `scale`.
        cases: prepared store, or None for the service's demo cases.
        scale: best rating; 1 is the worst.
        seed: of all orders.
    """

    title: str
    results: str
    arms: tuple[Arm, ...]
    questions: tuple[str, ...]
    cases: str | None = None
    scale: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        from clinfuse.baselines import BASELINES

        names = [arm.name for arm in self.arms]
        known = all(arm.method is None or arm.method in BASELINES for arm in self.arms)
        checks = {
            "arms": known and len(names) >= 2 and len(set(names)) == len(names),
            "questions": 1 <= len(self.questions) <= 12,
            "scale": 2 <= self.scale <= 10,
        }
        for name, ok in checks.items():
            if not ok:
                raise ConfigError(
                    f"study: {name} cannot be used",
                    expected="at least 2 arms, different names, known methods; 1 to 12 questions; a scale of 2 to 10",
                    found=repr(getattr(self, name))[:200],
                )


@dataclass(frozen=True)
class Item:
    """One picture to rate, at a place in one reader's order."""

    position: int
    case_id: str
    arm: Arm


def read_study(path: str | Path) -> Study:
    """A study file (YAML); folders in it that are not absolute lie beside it, whichever process reads it.

    Raises:
        ConfigError: not readable, or with fields that are missing, unknown or impossible.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        values |= {name: _beside(path, values[name]) for name in ("results", "cases") if values.get(name)}
        arms = tuple(Arm(**arm) for arm in values.pop("arms"))
        return Study(arms=arms, questions=tuple(values.pop("questions")), **values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the study file cannot be read", found=type(error).__name__) from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            "not a study file",
            expected="title, results, arms (name, and preset or method), questions; see docs/serving.md",
            found=str(error),
        ) from error


def _beside(path: str | Path, folder: str) -> str:
    return folder if "://" in folder else str(Path(path).resolve().parent / folder)


def order_of(study: Study, case_ids: Sequence[str], reader: str) -> list[Item]:
    """The items of one reader, the same whenever asked.

    Raises:
        InputError: the pseudonym is not plain letters and digits.
    """
    if not READER.fullmatch(reader):
        raise InputError(
            "this reader's name cannot be used",
            expected="a pseudonym of 1 to 32 letters a-z and digits, no real name",
            found=repr(reader[:40]),
        )
    digest = hashlib.blake2b(f"{study.seed}/{reader}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    arms = {case_id: rng.permutation(len(study.arms)) for case_id in case_ids}
    items: list[Item] = []
    for turn in range(len(study.arms)):
        for index in rng.permutation(len(case_ids)):
            case_id = case_ids[index]
            items.append(Item(len(items), case_id, study.arms[arms[case_id][turn]]))
    return items[:MAX_ITEMS]


class Answers:
    """The folder of answers."""

    def __init__(self, study: Study) -> None:
        self.study, self.folder = study, Path(study.results)
        self.folder.mkdir(parents=True, exist_ok=True)

    def done(self, reader: str) -> set[int]:
        """Places that this reader has answered."""
        return {int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{reader}-*.parquet")}

    def note_drawn(self, item: Item, reader: str, model_hash: str) -> None:
        """Keep by which model version the picture was made that this reader sees; "" for a method without a model."""
        with self._aside() as aside:
            aside.write_text(model_hash, encoding="ascii")
            os.replace(aside, self._drawn(item, reader))

    def add(self, item: Item, reader: str, ratings: Sequence[int], seconds: float) -> None:
        """Write one answer, a row a question.

        Raises:
            InputError: not one rating in range for every question, answered before, or the picture was never shown.
        """
        import pandas as pd

        questions, scale = self.study.questions, self.study.scale
        if len(ratings) != len(questions) or not all(1 <= rating <= scale for rating in ratings):
            raise InputError(
                "the answer is not complete",
                expected=f"{len(questions)} ratings of 1 to {scale}",
                found=str(list(ratings))[:80],
            )
        rows = {
            "study": self.study.title,
            "reader": reader,
            "position": item.position,
            "case_id": item.case_id,
            "arm": item.arm.name,
            "preset": item.arm.preset,
            "method": item.arm.method or "model",
            "model_hash": self._model_hash(item, reader),
            "question": list(questions),
            "rating": list(ratings),
            "seconds": float(seconds),
            "answered": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": f"clinfuse {__version__}",
            "notice": RESEARCH_USE,
        }
        target = self.folder / f"{reader}-{item.position:05d}.parquet"
        with self._aside() as aside:
            pd.DataFrame(rows).to_parquet(aside, index=False)
            try:
                os.link(aside, target)  # unlike a rename, refuses to replace an answer
            except FileExistsError as error:
                raise InputError("this picture is rated already", found=f"item {item.position}") from error

    def _drawn(self, item: Item, reader: str) -> Path:
        return (
            self.folder / f".{reader}-{item.position:05d}.model"
        )  # the dot hides it from pandas.read_parquet

    def _model_hash(self, item: Item, reader: str) -> str:
        try:
            return self._drawn(item, reader).read_text(encoding="ascii")
        except FileNotFoundError as error:
            raise InputError(
                "this picture cannot be rated before it was shown",
                expected="a rating after GET …/fused",
                found=f"item {item.position}",
            ) from error

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A file of the folder that nobody reads, to be moved to its place when it is whole."""
        aside = self.folder / f".{uuid4().hex}.part"
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def summary(self) -> list[dict[str, Any]]:
        """Per question and arm: answers, readers, mean rating with a 95 % interval, median seconds.

        The interval is a bootstrap over cases, as answers about one case are not independent.
        """
        import pandas as pd

        paths = sorted(self.folder.glob("*.parquet"))
        if not paths:
            return []
        table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        rows = []
        for (question, arm), group in table.groupby(["question", "arm"], sort=True):
            low, high = interval(group.groupby("case_id")["rating"].mean().to_numpy())
            rows.append(
                {
                    "question": question,
                    "arm": arm,
                    "answers": len(group),
                    "readers": int(group["reader"].nunique()),
                    "mean": round(float(group["rating"].mean()), 3),
                    "low": low,
                    "high": high,
                    "median_seconds": round(float(group["seconds"].median()), 1),
                }
            )
        return rows


def interval(values: NDArray[np.float64], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over cases, seed fixed."""
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return round(float(low), 3), round(float(high), 3)
