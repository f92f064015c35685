"""Dependencies point one way: the core loads no Ray, and the folder `platform/` does not hide Python's module."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = """
import importlib, pkgutil, sys, clinfuse
for module in pkgutil.walk_packages(clinfuse.__path__, "clinfuse."):
    importlib.import_module(module.name)
bad = sorted({name.split(".")[0] for name in sys.modules} & {"ray", "clinfuse_prep", "clinfuse_platform",
             "clinfuse_sweeps", "clinfuse_serve"})
print("loaded:", *bad)
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_core_loads_neither_ray_nor_other_rooms() -> None:
    assert python(CORE) == "loaded:"


def test_platform_is_the_standard_library_s_with_the_root_first() -> None:
    code = "import sys, platform; print(platform.__file__)"
    found = Path(python(code, PYTHONPATH=str(ROOT)))
    assert found.parent == Path(sysconfig.get_paths()["stdlib"])
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_each_room_imports_only_leftward() -> None:
    order = ["clinfuse", "clinfuse_prep", "clinfuse_platform", "clinfuse_sweeps", "clinfuse_serve"]
    folders = [
        "clinfuse",
        *(f"{a}/{b}" for a, b in zip(["data_prep", "platform", "sweeps", "serve"], order[1:], strict=True)),
    ]
    for place, folder in enumerate(folders):
        for file in (ROOT / folder).rglob("*.py"):
            for line in file.read_text().splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    room = words[1].split(".")[0]
                    assert room not in order[place + 1 :], f"{file.relative_to(ROOT)}: {line.strip()}"
