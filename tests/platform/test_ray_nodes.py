"""What holds on every node: Python's own `platform` module, the same versions, the storage in sight."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from clinfuse_platform.verb_table import run_verb

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


def test_platform_is_the_standard_library_s_in_a_ray_worker_too(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0.1, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    def where() -> tuple[str, str]:
        import platform
        import sys

        import numpy as np

        assert np.zeros(1).size == 1
        return str(platform.__file__), ":".join(sys.path)

    file, path = ray.get(where.remote())
    assert str(ROOT) in path
    assert Path(file).parent == Path(sysconfig.get_paths()["stdlib"])


def test_doctor_examines_every_node(ray_session: None, tmp_path: Path) -> None:
    result = run_verb("doctor", ["--cluster", "--storage", str(tmp_path)])
    states = {check["name"]: check["status"] for check in result["checks"]}
    assert states["node 1"] == states["versions"] == "ok"
    assert not list(tmp_path.iterdir())
