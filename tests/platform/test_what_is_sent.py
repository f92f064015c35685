"""What leaves the folder one works in: the code, and nothing that is or leads back to a patient, by any way out."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER_FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "platform" / "clusters").glob("[!jk]*.yaml"))]
ROOMS = ("clinfuse", "data_prep", "platform", "sweeps", "serve")
ALONE = (
    ".gitignore",
    "constraints.txt",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "LICENSE",
    "cluster.yaml",
)
STAYS = (
    "head.zarr/zarr.json",
    "head.zarr/cases/c1/anatomy/0/c/0/0/0",
    "head.zarr.key/key.hex",
    "head.zarr.key/links.csv",
    "head.zarr.inspect/inspect.html",
    "store.key/links.csv",
    "store.inspect/contact_sheet.png",
    "secret/key.hex",
    "secret/links.csv",
    "deep/er/head.zarr.key/links.csv",
    "t1.nii.gz",
    "IMAGES/sub-01/ct.nii",
    "IMAGES/1BA001/mr.mha",
    "IMAGES/p.nrrd",
    "IMAGES/scan/0001.dcm",
    "IMAGES/scan/0001.IMA",
    "aanlib/MRI-CT/case_1/MRI/1.png",
    "aanlib_results/report.html",
    "fused/sub-1_desc-fused_T1w.json",
    "results/report.html",
    "evaluation/report.html",
    "ablations/report.html",
    "serve/study_results/answer.parquet",
    "searches/first/pictures/a.png",
    "fronts/pareto.html",
    "runs/first/config.json",
    "night/trials.parquet",
    "training/trials.parquet",
    "demo_out/report.html",
    "release_out/runs/released/config.json",
    "clinfuse/__pycache__/a.pyc",
    ".mypy_cache/a.json",
)
UNNAMED = ("IMAGES/scan/IM000001", "IMAGES/scan/1.2.840.113619.2.55.3", "Series 3/ct", "DISC/DICOMDIR")
"""Images whose names tell nothing: no pattern is theirs, but they lie in folders that are none of the code's."""


def code() -> set[str]:
    """Every file of the rooms, and the files beside them that an installation needs."""
    files = {path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    own = {path for path in files if not any("__pycache__" in part or ".egg" in part for part in path.parts)}
    return {str(path.relative_to(ROOT)) for path in own} | set(ALONE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which somebody has worked: code, patients' files and results, all empty but .gitignore."""
    tree = tmp_path_factory.mktemp("checkout")
    for name in (*code(), *STAYS, *UNNAMED):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    (tree / ".venv").symlink_to(tree)
    shutil.copy(ROOT / ".gitignore", tree)
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    return tree


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here")
@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_ray_up_copies_the_code_alone(path: Path, folder: Path, tmp_path: Path) -> None:
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    options = SSHCommandRunner._create_rsync_filter_args(None, read(path))
    subprocess.run(["rsync", "-a", *options, f"{folder}/", f"{tmp_path}/"], check=True)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == code()
    assert {file.name for file in tmp_path.iterdir()} == {name.partition("/")[0] for name in code()}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here")
@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_ray_up_copies_single_files_whatever_their_name(path: Path, tmp_path: Path) -> None:
    """The token, and what Ray itself sends by the same options: its cluster file and the key, under passing names."""
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    options = SSHCommandRunner._create_rsync_filter_args(None, read(path))
    for name in ("auth_token", "ray-bootstrap-x1y2", "id_ed25519"):
        (tmp_path / name).touch()
        subprocess.run(["rsync", "-a", *options, tmp_path / name, f"{tmp_path}/there/"], check=True)
        assert (tmp_path / "there" / name).is_file()


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_cluster_files_leave_behind_what_git_ignores(path: Path) -> None:
    assert read(path)["rsync_filter"] == [".gitignore"] and "**/.git" in read(path)["rsync_exclude"]


def test_a_job_takes_the_code_alone(folder: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    excludes = read(ROOT / "platform" / "clusters" / "job.yaml")["excludes"]
    package = tmp_path / "job.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    names = zipfile.ZipFile(package).namelist()
    assert {name for name in names if not name.endswith("/")} == code() - set(ALONE)
    assert {name.partition("/")[0] for name in names} - {""} == set(ROOMS)


def test_git_commits_the_code_alone(folder: Path) -> None:
    listed = ["git", "-C", str(folder), "ls-files", "--others", "--exclude-standard"]
    found = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(found) - set(UNNAMED) == code()
