"""Makes the helper module `make_sources` importable, and offers a prepared source of each kind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from clinfuse_prep.raw import RawImage

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def prep() -> Callable[..., dict[str, Any]]:
    """`clinfuse prep` as a function of its words; without the slow comparison of brain masks."""

    def run(*words: str | Path) -> dict[str, Any]:
        from clinfuse_prep.verbs import PREP

        parser = argparse.ArgumentParser()
        PREP.add_arguments(parser)
        arguments = parser.parse_args([*(str(word) for word in words), "--no-compare"])
        PREP.check(arguments)
        return PREP.run(arguments)

    return run


@pytest.fixture(scope="session")
def templates(data_root: Path) -> tuple[RawImage, RawImage]:
    """T1 and CT of one real averaged head each, on grids of 2 mm."""
    from clinfuse_prep.nifti import read_nifti

    folder = data_root / "templates_2mm"
    if not folder.is_dir():
        pytest.skip("the 2 mm templates are not here")
    t1, ct = (read_nifti(folder / f"{name}.nii.gz", role=name) for name in ("t1", "ct_hu"))
    return t1, ct
