"""The page in a real headless browser: load a pair, change the preset, see the picture change, no console error."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., str]
Pair = dict[str, Path]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One tab, spoken to over the DevTools protocol through two pipes; keeps what the console said."""

    def __init__(self, chromium: str, folder: Path) -> None:
        quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
        flags = [
            *quiet,
            "--disable-background-networking",
            f"--user-data-dir={folder}",
            "--window-size=1400,1000",
        ]
        to_child, self.commands = os.pipe()
        self.answers, from_child = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_child, from_child)]
        place = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
        place += "os.execv(sys.argv[3], sys.argv[3:])"
        program = [sys.executable, "-c", place, *map(str, ends), chromium, *flags]
        self.process = subprocess.Popen(
            [*program, "--remote-debugging-pipe", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=ends,
        )
        for end in (to_child, from_child, *ends):
            os.close(end)
        self.count, self.buffer, self.session = 0, b"", None
        self.errors: list[str] = []
        tabs = self.call("Target.getTargets")["targetInfos"]
        page = next(tab["targetId"] for tab in tabs if tab["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; events that arrive meanwhile are noted if they are errors."""
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            request["sessionId"] = self.session
        os.write(self.commands, json.dumps(request).encode() + b"\0")
        while True:
            message = self._read()
            self._note(message)
            if message.get("id") == self.count:
                assert "error" not in message, message
                return dict(message["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.answers], [], [], 60)[0], "the browser is silent"
            piece = os.read(self.answers, 1 << 20)
            assert piece, "the browser has gone"
            self.buffer += piece
        text, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        entry = params.get("entry", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Log.entryAdded" and entry.get("level") == "error"
        ):
            self.errors.append(json.dumps(params)[:500])

    def run(self, script: str) -> Any:
        """Value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 90) -> None:
        """Until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, (condition, self.run("document.body.innerText"), self.errors)
            time.sleep(0.1)

    def choose_files(self, files: dict[str, Path]) -> None:
        """Put files into file inputs by id."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        for role, path in files.items():
            node = self.call("DOM.querySelector", nodeId=root, selector=f"#{role}")["nodeId"]
            self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path) -> None:
        """A screenshot."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def key(self, name: str) -> None:
        """Press one key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.answers)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser, or skip."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    made = Browser(program, tmp_path / "profile")
    yield made
    made.close()


def pixels(browser: Browser, key: str) -> str:
    """The axial picture of a column, as a data URL."""
    return str(browser.run(f"document.querySelector('#images canvas[data-key={key}]').toDataURL()"))


def fused(browser: Browser) -> None:
    browser.wait("/^Fused in/.test(document.getElementById('status').textContent)")


def test_a_clinician_fuses_a_pair(
    browser: Browser, local_service: Start, nifti_pair: Pair, tmp_path: Path
) -> None:
    browser.call("Page.navigate", url=local_service())
    browser.wait("document.getElementById('preset')?.options.length >= 7")
    assert "Research use only" in browser.run("document.body.innerText")
    browser.choose_files(nifti_pair)
    browser.run("document.getElementById('load').click()")
    fused(browser)
    assert browser.run("document.querySelectorAll('#images canvas').length") == 12
    assert browser.run("document.getElementById('simulated').hidden")
    assert "3 of 3 members answered" in browser.run("document.getElementById('status').textContent")
    first, mri = pixels(browser, "fused"), pixels(browser, "anatomy")
    assert first != mri and pixels(browser, "uncertainty") != first
    _slider(browser, "priority", 100)
    browser.wait("state.info.weights.beta === 4 && !state.busy")
    assert pixels(browser, "fused") != first and pixels(browser, "anatomy") == mri
    browser.wait("document.getElementById('status').textContent.indexOf('whole follows') < 0 && !state.busy")
    _compare(browser)
    _scroll(browser)
    _opacity_and_flags(browser)
    if folder := os.environ.get("CLINFUSE_TEST_PICTURES"):
        browser.picture(Path(folder) / "viewer_tiny.png")
    assert browser.errors == []


def _slider(browser: Browser, name: str, value: int) -> None:
    browser.run(
        f"document.getElementById('{name}').value = {value};"
        f"document.getElementById('{name}').dispatchEvent(new Event('input'))"
    )


def _compare(browser: Browser) -> None:
    browser.run(
        "document.getElementById('compare').value = 'stroke';"
        "document.getElementById('compare').dispatchEvent(new Event('change'))"
    )
    browser.wait("document.querySelectorAll('#images canvas').length === 15 && !state.busy")
    assert "Fused: stroke" in browser.run("document.getElementById('images').innerText")
    assert pixels(browser, "compared") != pixels(browser, "fused")


def _scroll(browser: Browser) -> None:
    before = pixels(browser, "anatomy")
    browser.run("document.querySelector('#images canvas').focus()")
    browser.key("ArrowUp")
    assert pixels(browser, "anatomy") != before
    label = browser.run("document.querySelector('#images canvas').getAttribute('aria-label')")
    assert label == "MRI, axial slice 8 of 12"
    browser.key("ArrowDown")
    assert pixels(browser, "anatomy") == before


def _opacity_and_flags(browser: Browser) -> None:
    _slider(browser, "opacity", 0)
    assert pixels(browser, "uncertainty") == pixels(browser, "fused")
    _slider(browser, "opacity", 70)
    _slider(browser, "threshold", 5)
    assert "ml at 0.05 or above" in browser.run("document.getElementById('flagged').textContent")


def test_page_and_nifti_agree_on_where_things_are(
    browser: Browser, local_service: Start, nifti_pair: Pair
) -> None:
    """The volume that the page shows, read back from it, is the RAS+ case of the L-A-S file."""
    import numpy as np
    from clinfuse_prep.prepare import prepare_pair

    browser.call("Page.navigate", url=local_service())
    browser.wait("document.getElementById('preset')?.options.length >= 7")
    browser.choose_files(nifti_pair)
    browser.run("document.getElementById('load').click()")
    fused(browser)
    size = browser.run("state.volumes.anatomy.size")
    shown = np.array(browser.run("[...state.volumes.anatomy.data]"), np.float32).reshape(size[::-1])
    masks = {roi: nifti_pair[roi] for roi in ("brain", "bone", "lesion")}
    case = prepare_pair(nifti_pair["anatomy"], nifti_pair["companion"], **masks)
    np.testing.assert_allclose(shown, case.anatomy, atol=1e-6)
    world = browser.run("worldOf(state.volumes.anatomy, [3, 20, 5])")
    np.testing.assert_allclose(world, (case.affine @ [3, 20, 5, 1])[:3], atol=1e-3)


def test_a_refusal_is_told_on_the_page(
    browser: Browser, local_service: Start, nifti_pair: Pair, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.nii"
    wrong.write_bytes(b"not an image at all, only words")
    browser.call("Page.navigate", url=local_service())
    browser.wait("document.getElementById('preset')?.options.length >= 7")
    browser.choose_files({"anatomy": nifti_pair["anatomy"], "companion": wrong})
    browser.run("document.getElementById('load').click()")
    browser.wait("document.getElementById('status').className === 'bad'")
    text = browser.run("document.getElementById('status').textContent")
    assert "companion image is not of a kind" in text and "expected NIfTI" in text
