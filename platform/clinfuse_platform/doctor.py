"""`clinfuse doctor`: versions, devices, Ray, disk and optional parts: what works here and what is missing."""

from __future__ import annotations

import argparse
import importlib
import os
import platform as machine
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clinfuse_prep.session import ray_ready, session

from clinfuse import RESEARCH_USE, __version__
from clinfuse.console import counted
from clinfuse.errors import ConfigError, InputError
from clinfuse.folders import check_writable
from clinfuse.verbs import Verb
from clinfuse_platform.verb_table import load_verb, verb_entries

PACKAGES = (
    "torch",
    "monai",
    "diffusers",
    "ray",
    "optuna",
    "zarr",
    "nibabel",
    "SimpleITK",
    "pydicom",
    "nilearn",
)
OPTIONAL = {
    "deepbet": "brain masks by a network (pip install 'clinfuse[brain]')",
    "tensorstore": "faster reads from shards (pip install tensorstore)",
    "s3fs": "stores and runs on S3 (pip install 'clinfuse[s3]')",
}
LEAST_FREE_GB = 5.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's table; status is "ok", "missing" (optional) or "broken" (needed)."""

    name: str
    status: str
    found: str
    todo: str = ""


def check_asked(arguments: argparse.Namespace) -> None:
    """Refuse to look at a cluster that nobody named: a session of our own would be one node, and healthy.

    Raises:
        ConfigError: --cluster without an open session, an address or RAY_ADDRESS.
    """
    if arguments.cluster and not (ray_ready() or arguments.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            "no cluster is named",
            expected="--address HOST:PORT, or RAY_ADDRESS",
            found="neither",
            todo="on the cluster's head: --address auto",
        )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Examine this machine; `lost` counts what is needed and broken."""
    checks = [check_python(), *map(check_package, PACKAGES), *check_optional(), check_devices()]
    if "://" not in arguments.storage:
        checks.append(check_disk(Path(arguments.storage)))
    checks += check_verbs()
    if arguments.cluster:
        from clinfuse_platform.doctor_cluster import check_cluster

        checks += check_cluster(arguments.address, arguments.storage)
    elif not arguments.quick:
        checks.append(check_ray(arguments.address))
    show(checks)
    broken = sum(check.status == "broken" for check in checks)
    return {
        "result": "all that is needed works" if not broken else f"{counted(broken, 'needed part')} broken",
        "checks": [asdict(check) for check in checks],
        "lost": broken,
        "research_use": RESEARCH_USE,
    }


def guarded(name: str, examine: Callable[[], Check]) -> Check:
    """The check's outcome, or a "broken" one with the error's own words."""
    try:
        return examine()
    except InputError as error:
        expected = f"expected {error.expected}; " if error.expected else ""
        return Check(
            name=name, status="broken", found=f"{error.problem}: {error.found}", todo=expected + error.todo
        )
    except Exception as error:
        return Check(name=name, status="broken", found=f"{type(error).__name__}: {error}")


def check_python() -> Check:
    """Python 3.11 or newer, and the standard library's `platform` not shadowed by the folder of that name."""
    if not hasattr(machine, "python_version"):
        return Check(
            name="python",
            status="broken",
            found="platform is not the standard library's",
            todo="remove __init__",
        )
    fine = sys.version_info >= (3, 11)
    found = f"{machine.python_version()} on {machine.system()} {machine.machine()}, clinfuse {__version__}"
    return Check(name="python", status="ok" if fine else "broken", found=found)


def check_package(name: str) -> Check:
    """A needed package imports; its version is told."""

    def examine() -> Check:
        importlib.import_module(name)
        return Check(name=name, status="ok", found=version(name))

    return guarded(name, examine)


def check_optional() -> list[Check]:
    """Optional packages: present with version, or missing with what they would bring."""
    checks = []
    for name, brings in OPTIONAL.items():
        try:
            checks.append(Check(name=name, status="ok", found=version(name)))
        except PackageNotFoundError:
            checks.append(Check(name=name, status="missing", found="not installed", todo=brings))
    return checks


def check_devices() -> Check:
    """CPU cores, memory and GPUs that torch can use."""

    def examine() -> Check:
        import psutil
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory_gb = psutil.virtual_memory().total / 1e9
        found = f"{os.cpu_count()} cores, {memory_gb:.0f} GB memory, GPUs: {', '.join(gpus) or 'none'}"
        return Check(name="devices", status="ok", found=found)

    return guarded("devices", examine)


def check_disk(storage: Path) -> Check:
    """The storage folder can be written and has room."""

    def examine() -> Check:
        check_writable(storage, "--storage")
        existing = next(p for p in (storage.absolute(), *storage.absolute().parents) if p.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        enough = free_gb >= LEAST_FREE_GB
        todo = "" if enough else f"free {LEAST_FREE_GB:g} GB or choose another --storage"
        return Check(
            name="storage", status="ok" if enough else "broken", found=f"{free_gb:.0f} GB free", todo=todo
        )

    return guarded("storage", examine)


def check_verbs() -> list[Check]:
    """Every declared verb loads."""

    def examine(name: str) -> Check:
        return Check(name=f"verb {name}", status="ok", found=load_verb(name).help)

    return [guarded(f"verb {name}", lambda name=name: examine(name)) for name in verb_entries()]  # type: ignore[misc]


def check_ray(address: str | None = None) -> Check:
    """A Ray session starts (or the cluster at the address answers) and runs one task."""

    def examine() -> Check:
        import ray

        with session(address):
            ray.get(ray.remote(num_cpus=0.1)(check_python).remote())
            have = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
        return Check(
            name="ray session",
            status="ok",
            found=f"{nodes} node(s), {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs",
        )

    return guarded("ray session", examine)


def show(checks: list[Check]) -> None:
    """The table on standard error; verbs that load are summed up in one line."""
    from rich.markup import escape
    from rich.table import Table

    from clinfuse.console import CONSOLE, say

    table = Table("part", "state", "found", "to do", title="clinfuse doctor")
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    verbs = [check for check in checks if check.name.startswith("verb ") and check.status == "ok"]
    for check in checks:
        if check not in verbs:
            state = f"[{colours[check.status]}]{check.status}[/]"
            table.add_row(check.name, state, escape(check.found), escape(check.todo))
    table.add_row("verbs", "[green]ok[/]", f"{len(verbs)} load", "")
    CONSOLE.print(table)
    say(RESEARCH_USE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse doctor`."""
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs will be kept")
    parser.add_argument("--cluster", action="store_true", help="examine every node of the cluster")
    parser.add_argument("--quick", action="store_true", help="do not start a Ray session")


DOCTOR = Verb(
    name="doctor",
    help="Check this machine: versions, devices, Ray, disk, optional parts.",
    add_arguments=add_arguments,
    run=run,
    check=check_asked,
)
