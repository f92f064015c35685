"""Lean processes load less, compute the same, and can still import afterwards what was hidden."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib import metadata

import pytest

from clinfuse.lean import HIDDEN, SWITCH, hidden

CODE = """
import sys
if sys.argv[1:]:
    import pandas, scipy.ndimage
import torch
from clinfuse.training import build_denoiser, build_lesion_head, recipe
torch.set_num_threads(1)
torch.manual_seed(0)
head = build_lesion_head(recipe("cpu-debug")).eval()
optimizer = torch.optim.AdamW(head.parameters())
head(torch.rand(1, 1, 32, 32)).sum().backward()
optimizer.step()
optimizer.zero_grad()
if torch.distributed.is_available():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    torch.nn.parallel.DistributedDataParallel(head)(torch.rand(1, 1, 32, 32)).sum().backward()
    torch.distributed.destroy_process_group()
with torch.no_grad():
    value = float(head(torch.rand(1, 1, 32, 32)).sum())
spared = ("pandas", "scipy.signal", "scipy.stats", "sklearn", "skimage", "matplotlib", "torch._dynamo.utils", "sympy")
before = [name for name in spared if name in sys.modules]
import pandas, pydicom, scipy.signal, scipy.stats, sklearn, skimage.measure, nibabel
from monai.networks.nets import UNet
double = torch.compile(lambda x: 2 * x, backend="eager")
assert float(double(torch.ones(()))) == 2 and torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
assert torch._dynamo.trace_rules.LEGACY_MOD_INLINELIST
print(value, ",".join(before))
"""


def run_code(switch: str, *loaded: str) -> tuple[float, str]:
    """The network's value, and the spared packages that are loaded; pandas and SciPy come first if `loaded`."""
    environment = {**os.environ, SWITCH: switch}
    words = [sys.executable, "-c", CODE, *loaded]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    value, _, names = done.stdout.strip().rpartition("\n")[2].partition(" ")
    return float(value), names


def test_same_numbers_from_fewer_modules() -> None:
    lean, lean_loaded = run_code("1")
    full, full_loaded = run_code("0")
    assert lean == full
    assert lean_loaded == ""
    assert run_code("1", "loaded") == (full, "pandas"), "what is loaded before draws the rest in"
    assert "pandas" in full_loaded, "MONAI no longer imports pandas: clinfuse.lean may have become needless"
    assert "sympy" in full_loaded, "torch no longer loads its compiler: clinfuse.lean need not let it sleep"


def test_hidden_names_come_back() -> None:
    import scipy

    with hidden(["wave", "os", "scipy"]):
        assert "os" in sys.modules and sys.modules["os"] is os
        for name in ("wave", "scipy"):
            with pytest.raises(ImportError):
                importlib.import_module(name)
    import wave  # noqa: F401

    assert sys.modules["scipy"] is scipy


def test_nothing_is_hidden_that_monai_requires() -> None:
    needed = {
        str(r).split()[0].split(">")[0] for r in metadata.requires("monai") or () if "extra" not in str(r)
    }
    assert not needed & set(HIDDEN["monai"])
