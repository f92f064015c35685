"""Reader study: orders, blinding, answers that are never lost or doubled, summary; the page in a real browser."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from chromium import Browser
from clinfuse_serve.backend import Gathered, LocalBackend
from clinfuse_serve.limits import Limits
from clinfuse_serve.schemas import ExampleRow
from clinfuse_serve.study import Answers, Arm, Study, interval, order_of, read_study
from posting import Start, get, until

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError

ARMS = (Arm(name="A", preset="balanced"), Arm(name="B", preset="bone_tumor"), Arm(name="C", method="mean"))
CASES = ["c1", "c2", "c3", "c4"]


class TwoCases:
    """The tiny case twice, as a service's own cases."""

    def __init__(self, case: Case) -> None:
        self.made = {name: replace(case, case_id=name, attrs={"simulated": True}) for name in ("one", "two")}

    def names(self) -> list[str]:
        return list(self.made)

    def rows(self) -> list[ExampleRow]:
        return [ExampleRow(id=name, title=name, simulated=True) for name in self.made]

    def case(self, name: str) -> Case:
        return self.made[name]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three arms, two questions."""
    return Study(
        title="Test study",
        results=str(tmp_path / "results"),
        arms=ARMS,
        questions=("Lesion border", "Bone edges"),
        seed=3,
    )


def test_every_reader_sees_every_case_by_every_arm_once_in_an_order_of_his_own(study: Study) -> None:
    orders = {reader: order_of(study, CASES, reader) for reader in ("r1", "r2", "r3")}
    for order in orders.values():
        assert [item.position for item in order] == list(range(12))
        assert {(item.case_id, item.arm.name) for item in order} == {(c, a.name) for c in CASES for a in ARMS}
        for start in (0, 4, 8):
            assert {item.case_id for item in order[start : start + 4]} == set(CASES)
    assert orders["r1"] == order_of(study, CASES, "r1") != orders["r2"]
    for name in ("", "Dr Smith", "a" * 33, "../x"):
        with pytest.raises(InputError, match="pseudonym"):
            order_of(study, CASES, name)


def test_answers_are_kept_once_and_summed_up(study: Study) -> None:
    answers = Answers(study)
    for reader in ("r1", "r2"):
        for item in order_of(study, CASES, reader):
            best = {"A": 5, "B": 3, "C": 1}[item.arm.name]
            answers.note_drawn(item, reader, f"version{item.position % 2}")
            answers.add(item, reader, [best, 2], 10.0 + item.position)
    assert answers.done("r1") == set(range(12))
    with pytest.raises(InputError, match="rated already"):
        answers.add(order_of(study, CASES, "r1")[0], "r1", [1, 1], 1.0)
    for wrong in ([1], [0, 3], [3, 6]):
        with pytest.raises(InputError, match="2 ratings of 1 to 5"):
            answers.add(order_of(study, CASES, "r3")[0], "r3", wrong, 1.0)
    with pytest.raises(InputError, match="before it was shown"):
        answers.add(order_of(study, CASES, "r3")[0], "r3", [1, 1], 1.0)
    table = pd.read_parquet(study.results)
    assert len(table) == 2 * 12 * 2 and set(table["reader"]) == {"r1", "r2"}
    assert {"rating", "seconds", "arm", "question", "case_id", "position"} <= set(table.columns)
    assert set(table["model_hash"][table["position"] == 3]) == {"version1"}, (
        "as it was when the picture was made"
    )
    rows = {(row["question"], row["arm"]): row for row in answers.summary()}
    assert rows["Lesion border", "A"] | {"median_seconds": 0} == {
        "question": "Lesion border", "arm": "A", "answers": 8, "readers": 2,
        "mean": 5.0, "low": 5.0, "high": 5.0, "median_seconds": 0,
    }  # fmt: skip
    assert rows["Bone edges", "B"]["mean"] == 2.0


def test_the_interval_is_a_bootstrap_over_cases() -> None:
    values = np.array([1.0, 2, 3, 4, 5])
    low, high = interval(values)
    error = 1.96 * values.std() / math.sqrt(5)
    assert low == pytest.approx(3 - error, abs=0.15) and high == pytest.approx(3 + error, abs=0.15)


def test_study_files_are_checked(tmp_path: Path) -> None:
    study = read_study(Path(__file__).parents[2] / "serve" / "study.yaml")
    assert len(study.arms) == 3 and study.scale == 5
    good = "title: t\nresults: r\nquestions: [q]\narms: [{name: a}, {name: b, method: mean}]\n"
    path = tmp_path / "study.yaml"
    path.write_text(good)
    assert read_study(path).arms[1].method == "mean"
    assert read_study(path).results == str(tmp_path / "r"), "beside the file, whichever process reads it"
    for before, after in (
        ("name: b", "name: a"),
        ("mean", "magic"),
        ("[q]", "[]"),
        ("title: t", "x: t"),
        ("{name", "{nam"),
    ):
        path.write_text(good.replace(before, after))
        with pytest.raises(ConfigError, match="study"):
            read_study(path)


def rate(url: str, reader: str, item: int, ratings: list[int]) -> httpx.Response:
    body = {"ratings": ratings, "seconds": 3.5}
    return httpx.post(f"{url}/v1/study/readers/{reader}/{item}", json=body, trust_env=False, timeout=60)


def test_study_over_http_is_blind_and_resumes(local_service: Start, tiny_case: Case, study: Study) -> None:
    url = local_service(examples=TwoCases(tiny_case), study=study)
    facts = get(url, "/v1/study").json()
    assert facts["items"] == 6 and "arms" not in facts
    seen: dict[int, bytes] = {}
    for position in range(6):
        place = get(url, "/v1/study/readers/r1").json()
        assert place == {
            "item": position,
            "done": position,
            "items": 6,
            "simulated": True,
            "modalities": ["MR", "CT"],
            "spacing_assumed": False,
        }
        reply = get(url, f"/v1/study/readers/r1/{position}/fused")
        told = " ".join([*reply.headers.values(), reply.content[:400].decode("latin-1")])
        assert not any(word in told for word in ("balanced", "bone", "mean", "preset"))
        seen[position] = reply.content
        assert rate(url, "r1", position, [4, 2]).status_code == 200
    assert len(set(seen.values())) == 3
    assert get(url, "/v1/study/readers/r1").json()["item"] is None
    assert rate(url, "r1", 0, [4, 2]).status_code == 422 and rate(url, "r1", 9, [1, 1]).status_code == 404
    assert rate(url, "Dr Who", 0, [1, 1]).status_code == 422
    assert {row["arm"] for row in get(url, "/v1/study/summary").json()} == {"A", "B", "C"}
    served, table = get(url, "/v1/models").json()[0]["model_hash"], pd.read_parquet(study.results)
    assert set(zip(table["arm"], table["model_hash"], strict=True)) == {
        ("A", served),
        ("B", served),
        ("C", ""),
    }


class OneDown(LocalBackend):
    """Member 1 never answers."""

    async def sample(self, held: Case, orders: Any, members: Any, deadline_s: float, tell: Any) -> Gathered:
        there = [member for member in members if member != 1]
        gathered = await super().sample(held, orders, there, deadline_s, tell)
        gathered.missing[1] = "down"
        return gathered


def test_a_picture_that_lacks_a_member_is_not_shown(
    local_service: Start, tiny_case: Case, study: Study
) -> None:
    options = {"examples": TwoCases(tiny_case), "study": replace(study, arms=ARMS[:2])}
    url = local_service(backend=OneDown, **options)
    reply = get(url, "/v1/study/readers/r1/0/fused")
    assert reply.status_code == 503 and reply.headers["retry-after"]
    assert reply.json()["missing"] == [{"member": 1, "reason": "down"}]
    assert rate(url, "r1", 0, [4, 2]).status_code == 422
    assert get(url, "/v1/study/readers/r1").json()["done"] == 0


class Patient(LocalBackend):
    """Draws once the test says so."""

    go = threading.Event()

    async def sample(self, held: Case, orders: Any, members: Any, deadline_s: float, tell: Any) -> Gathered:
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        return await super().sample(held, orders, members, deadline_s, tell)


def test_pictures_wait_in_the_queue_and_end_with_their_reader(
    local_service: Start, tiny_case: Case, study: Study
) -> None:
    options = {"examples": TwoCases(tiny_case), "study": replace(study, arms=ARMS[:2])}
    url = local_service(Limits(queue=1), backend=Patient, **options)
    Patient.go.clear()
    path = "/v1/study/readers/r1/0/fused"
    with pytest.raises(httpx.ReadTimeout):
        get(url, path, 0.5)
    until(url, "clinfuse_cancelled_total 1")
    until(url, "clinfuse_in_flight 0")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, url, path)
        until(url, "clinfuse_in_flight 1")
        assert get(url, path).status_code == 429 and get(url, "/v1/study/readers/r1").status_code == 200
        Patient.go.set()
        assert first.result().status_code == 200


def test_no_study_no_route(local_service: Start) -> None:
    assert get(local_service(), "/v1/study").status_code == 404


def test_a_reader_rates_on_the_page(
    browser: Browser, local_service: Start, tiny_case: Case, study: Study
) -> None:
    url = local_service(examples=TwoCases(tiny_case), study=replace(study, arms=ARMS[:2]))
    browser.call("Page.navigate", url=f"{url}/study")
    browser.wait("Boolean(window.clinfuse)")
    browser.run(
        "document.getElementById('reader').value = 'r7'; document.getElementById('begin').requestSubmit()"
    )
    for position in range(4):
        browser.wait(
            f"document.getElementById('status').textContent === 'Picture {position + 1} of 4.' && !clinfuse.state.busy"
        )
        assert browser.run("document.querySelectorAll('#images canvas').length") == 3
        script: Any = (
            "for (const q of ['q0', 'q1']) document.querySelectorAll(`input[name=${q}]`)[3].click();"
        )
        browser.run(script + "document.getElementById('rating').requestSubmit()")
    browser.wait("/^Thank you/.test(document.getElementById('status').textContent)")
    table = pd.read_parquet(study.results)
    assert len(table) == 8 and set(table["rating"]) == {4} and (table["seconds"] > 0).all()
    assert browser.errors == []
