"""The pages' scripts run by Node against a real service: all of them but the drawing, where there is no browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest


def run_page(folder: Path, script: str, url: str, files: dict[str, Path] | None = None) -> Any:
    """What a script of a test gives back, run beside the page's own; skips where there is no Node.

    Args:
        folder: to put the page's scripts into.
        script: body of an async function that knows `open`, `until`, `happens` and `$` of dom.mjs, and `url`; what
            it returns comes back as JSON.
        files: role → image that is chosen on the page.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here")
    with resources.as_file(resources.files("clinfuse_serve").joinpath("viewer")) as viewer:
        shutil.copytree(viewer, folder / "page")
    shutil.copy(Path(__file__).with_name("dom.mjs"), folder / "page" / "dom.mjs")
    (folder / "page" / "package.json").write_text('{"type": "module"}')
    chosen = {role: str(path) for role, path in (files or {}).items()}
    (folder / "page" / "test.mjs").write_text(
        f"""import {{ $, happens, open, until }} from "./dom.mjs";
import {{ openAsBlob }} from "node:fs";
const url = {json.dumps(url)};
for (const [role, path] of Object.entries({json.dumps(chosen)})) $(role).files = [await openAsBlob(path)];
const told = await (async () => {{ {script} }})();
console.log(JSON.stringify(told));
process.exit(0);
"""
    )
    done = subprocess.run(
        [node, "--no-warnings", "test.mjs"],
        cwd=folder / "page",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
