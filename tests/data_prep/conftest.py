"""Makes the helper module `make_sources` importable, and offers a prepared source of each kind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
