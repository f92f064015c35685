"""A device's clock, memory and limits, and what a network asks of them; used by tests/benchmarks/method.py.

Times are one thread's processor time on a CPU, so that others on the machine count little, and wall time on a GPU.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Call = Callable[[], object]


def device_name(device: torch.device) -> str:
    """What it is called, with what tells how fast it is in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if f" {flag} " in told]
    words = " and ".join(fast) if fast else "no bfloat16 instructions"
    return f"{models[0] if models else platform.machine()} ({words}), one thread"


def seconds(device: torch.device, call: Call) -> float:
    """Of one call."""
    if device.type == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(
    device: torch.device, calls: Mapping[str, Call], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every call, one after the other, again and again; a first round to warm up is not counted."""
    if warm_up:
        for call in calls.values():
            call()
    rounds = [{name: seconds(device, call) for name, call in calls.items()} for _ in range(repeats)]
    return {name: [done[name] for done in rounds] for name in calls}


def peak_bytes(device: torch.device, call: Call) -> int | None:
    """Largest memory during a call above what was held before: tensors on a GPU, resident pages on a CPU (Linux)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not FORGET.exists():
        return None
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that using it again counts
    FORGET.write_text("5")  # the kernel forgets the peak so far
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call of a network does: floating-point operations of its products, and bytes that its layers read and
    write when nothing is fused (inputs, outputs and weights of every layer)."""

    flops: float
    bytes: float


def work_of(network: nn.Module, call: Call) -> Work:
    """Counted while a call runs the network."""
    moved = [0]

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [*inputs, output, *layer.parameters(recurse=False)]
        moved[0] += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    leaves = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    with FlopCounterMode(display=False) as counter:
        call()
    for hook in hooks:
        hook.remove()
    return Work(flops=float(counter.get_total_flops()), bytes=float(moved[0]))


def limits(device: torch.device, repeats: int) -> dict[str, float]:
    """What the device does at best, measured: operations/s of a matrix product at each precision, bytes/s of a copy.

    On a GPU float32 products may use TF32, as convolutions there do.
    """
    large = device.type == "cuda"
    side, numbers = (8192, 1 << 28) if large else (1024, 1 << 25)
    found = {}
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in DTYPES.items():
        square = torch.randn((side, side), device=device).to(dtype)
        times = in_turn(device, {name: lambda square=square: square @ square}, repeats)[name]
        found[name] = 2 * side**3 / statistics.median(times)
    torch.backends.cuda.matmul.allow_tf32 = before
    source, target = (torch.zeros(numbers, device=device) for _ in range(2))
    times = in_turn(device, {"copy": lambda: target.copy_(source)}, repeats)["copy"]
    return {**found, "copy": 2 * 4 * numbers / statistics.median(times)}
