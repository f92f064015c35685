"""The curl commands of the README's Serving section, pasted into a shell beside a running service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from posting import Pair, Start

from clinfuse.presets import load_presets

ROOT = Path(__file__).parents[2]
PLACE = "http://127.0.0.1:8000"


def test_curl_commands_work_as_pasted(local_service: Start, nifti_pair: Pair, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    section = re.search(r"## Serving\n(.*?)\n## ", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert section is not None
    commands = [line for line in section[1].splitlines() if line.startswith("curl")]
    assert len(commands) == 5
    shutil.copy(nifti_pair["anatomy"], tmp_path / "t1.nii.gz")
    shutil.copy(nifti_pair["companion"], tmp_path / "ct.nii.gz")
    values = {key: value for key, value in load_presets()["bone_tumor"].as_dict().items() if key != "name"}
    (tmp_path / "bone_tumor.json").write_text(json.dumps(values | {"beta": 3.25}, indent=1))
    url = local_service()
    told = [run(command.replace(PLACE, url), tmp_path) for command in commands]
    with zipfile.ZipFile(tmp_path / "fused.zip") as archive:
        assert any("_desc-fused_" in name for name in archive.namelist())
    assert json.loads(told[1])["shape"][0] == 1 and json.loads(told[2])["beta"] == 3.25
    assert any(row["name"] == "bone_tumor" and row["beta"] == 3.25 for row in json.loads(told[3]))
    assert "clinfuse_members_up 3" in told[4]


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sSf ", 1)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout
