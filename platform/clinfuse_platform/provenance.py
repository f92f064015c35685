"""Where a result comes from: code commit and hash, package versions, hash of the data."""

from __future__ import annotations

import hashlib
import platform as machine
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDED = ("torch", "monai", "diffusers", "ray", "optuna", "zarr", "numpy", "scipy", "SimpleITK", "nibabel")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": machine.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path | None = None) -> dict[str, Any]:
    """Commit of the source tree and whether it had changes; {"commit": None} for an installed copy.

    Args:
        folder: a folder of the tree; default where the clinfuse package lies.
    """
    import clinfuse

    where = folder or Path(clinfuse.__file__).resolve().parent
    try:
        commit = _git(where, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(where, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


@cache
def code_hash(package: Path | None = None) -> str:
    """SHA-256 (first 16 hex digits) over a package's sources, else those of clinfuse: method and metrics.

    What other code has computed is not this code's result, though the version may be the same.
    """
    import clinfuse

    root, seen = package or Path(clinfuse.__file__).resolve().parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        seen.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return seen.hexdigest()[:16]


def data_hash(store: str | Path) -> str:
    """SHA-256 (first 16 hex digits) over the store's manifest: same cases, same hash.

    A row holds the digest of its case's images, masks and affine (`content`), so what changes in them changes the hash.

    Raises:
        InputError: no dataset at this path, or no manifest in it.
    """
    from clinfuse_prep.store import CaseStore

    return hashlib.sha256(CaseStore(store).manifest_bytes()).hexdigest()[:16]


def has_lesions(store: str | Path) -> bool:
    """Whether any training case of the store has a lesion mask with something in it.

    Raises:
        InputError: no dataset at this path, or no manifest in it.
    """
    from clinfuse_prep.store import CaseStore

    rows = CaseStore(store).manifest()
    return bool((rows.loc[rows["split"] == "train", "lesion_ml"] > 0).any())
