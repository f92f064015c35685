"""A real Chromium without window, spoken to over the DevTools protocol; WebGL 2 by software."""

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
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-3d-apis",)


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab, spoken to over the DevTools protocol through two pipes; keeps what the console said."""

    def __init__(self, chromium: str, folder: Path, graphics: tuple[str, ...] = SOFTWARE_WEBGL) -> None:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--no-first-run",
            "--disable-background-networking",
            *graphics,
            f"--user-data-dir={folder}",
            "--window-size=1440,1000",
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

    def downloads_to(self, folder: Path) -> None:
        """Where files go that the page offers for download."""
        folder.mkdir(parents=True, exist_ok=True)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

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
