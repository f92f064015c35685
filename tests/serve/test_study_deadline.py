"""Study pictures are made as fused images are: the deadline covers queue and case, and what nobody waits for any more
keeps its place until it has ended."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from clinfuse_serve.limits import Limits
from clinfuse_serve.schemas import ExampleRow
from clinfuse_serve.study import Arm, Study
from posting import Start, get, refused, until

from clinfuse.case import Case

ARMS = {
    "method": (Arm(name="A", method="mean"), Arm(name="B", method="max")),
    "model": (Arm(name="A"), Arm(name="B", preset="bone_tumor")),
}
PICTURE = "/v1/study/readers/r1/0/fused"


class HeldCase:
    """One case that is there once the test says so; counts how many are being made, and their most at a time."""

    def __init__(self, made: Case) -> None:
        self.made, self.go = made, threading.Event()
        self.now, self.most, self._lock = 0, 0, threading.Lock()

    def names(self) -> list[str]:
        return ["one"]

    def rows(self) -> list[ExampleRow]:
        return []

    def case(self, name: str) -> Case:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go.wait(60)
        with self._lock:
            self.now -= 1
        return self.made


@pytest.fixture(params=sorted(ARMS))
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    """Arms of one kind: classical methods, or presets of the model."""
    return Study(title="t", results=str(tmp_path / "results"), arms=ARMS[request.param], questions=("q",))


def test_a_deadline_covers_case_and_queue_of_a_picture(
    local_service: Start, tiny_case: Case, study: Study
) -> None:
    held = HeldCase(tiny_case)
    url = local_service(Limits(at_once=1, deadline_s=1), examples=held, study=study)
    try:
        refused(get(url, PICTURE, 20), 503, "before the deadline", "within 1 s", "still being prepared")
        refused(get(url, PICTURE, 20), 503, "before the deadline", "still waiting in the queue")
        assert (held.now, held.most) == (1, 1), "what nobody waits for is ended in its place"
    finally:
        held.go.set()
    replies = (get(url, PICTURE) for _ in range(60))
    assert any(reply.status_code == 200 for reply in replies), "asked again, as the page does"


def test_an_abandoned_picture_keeps_its_place_until_it_has_ended_and_frees_it_then(
    local_service: Start, tiny_case: Case, study: Study
) -> None:
    held = HeldCase(tiny_case)
    url = local_service(Limits(at_once=1), examples=held, study=study)
    try:
        with pytest.raises(httpx.ReadTimeout):
            get(url, PICTURE, 0.5)
        until(url, "clinfuse_cancelled_total 1")
        until(url, "clinfuse_in_flight 0")
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(get, url, PICTURE)
            until(url, "clinfuse_in_flight 1")
            with pytest.raises(httpx.ReadTimeout):
                get(url, PICTURE, 0.5)
            until(url, "clinfuse_cancelled_total 2")
            assert (held.now, held.most) == (1, 1), "the others wait"
            held.go.set()
            assert second.result().status_code == 200
    finally:
        held.go.set()
    assert held.most == 1
