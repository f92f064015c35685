"""Lean processes load less, compute the same, and can still import afterwards what was hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

from clinfuse.lean import HIDDEN, SWITCH, hidden

CODE = """
import sys
import torch
from clinfuse.training import build_denoiser, build_lesion_head, recipe
torch.set_num_threads(1)
torch.manual_seed(0)
head = build_lesion_head(recipe("cpu-debug")).eval()
with torch.no_grad():
    value = float(head(torch.rand(1, 1, 32, 32)).sum())
spared = ("pandas", "scipy.signal", "scipy.stats", "sklearn", "skimage", "matplotlib", "torch._dynamo")
before = [name for name in spared if name in sys.modules]
import pandas, scipy.signal, sklearn, skimage.measure, nibabel
from monai.networks.nets import UNet
print(value, ",".join(before))
"""


def run_code(switch: str) -> tuple[float, str]:
    environment = {**os.environ, SWITCH: switch}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    value, _, names = done.stdout.strip().rpartition("\n")[2].partition(" ")
    return float(value), names


def test_same_numbers_from_fewer_modules() -> None:
    lean, lean_loaded = run_code("1")
    full, full_loaded = run_code("0")
    assert lean == full
    assert lean_loaded == ""
    assert "pandas" in full_loaded, "MONAI no longer imports pandas: clinfuse.lean may have become needless"


def test_hidden_names_come_back() -> None:
    with hidden(["wave", "os"]):
        assert "os" in sys.modules and sys.modules["os"] is os
        with pytest.raises(ImportError):
            import wave
    import wave  # noqa: F401


def test_nothing_is_hidden_that_monai_requires() -> None:
    needed = {
        str(r).split()[0].split(">")[0] for r in metadata.requires("monai") or () if "extra" not in str(r)
    }
    assert not needed & set(HIDDEN["monai"])
