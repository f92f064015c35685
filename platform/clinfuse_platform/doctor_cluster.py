"""`clinfuse doctor --cluster`: the same versions on every node, the storage seen by all, GPUs counted."""

from __future__ import annotations

import uuid
from typing import Any

from clinfuse_platform.doctor import Check

TIMEOUT_S = 120.0


def check_cluster(address: str | None, storage: str) -> list[Check]:
    """One check per node, and one for what must agree between them.

    Args:
        address: of the cluster; see clinfuse_prep.session.session.
        storage: folder or URL that every node must see; a small file is written there and removed.
    """
    import ray
    from clinfuse_prep.session import session

    from clinfuse_platform.storage import storage_path, write_atomic

    mark = storage_path(storage) / f".doctor-{uuid.uuid4().hex[:8]}"
    with session(address):
        write_atomic(mark, b"doctor")
        try:
            told = {node["NodeID"]: _ask(node["NodeID"], str(mark)) for node in ray.nodes() if node["Alive"]}
            answers = {node: _answer(reference) for node, reference in told.items()}
        finally:
            mark.unlink(missing_ok=True)
    checks = [_node_check(number, facts) for number, facts in enumerate(answers.values(), start=1)]
    return [*checks, _agreement(list(answers.values()))]


def _ask(node_id: str, mark: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(num_cpus=0)(node_facts).options(scheduling_strategy=here).remote(mark)


def _answer(reference: Any) -> dict[str, Any]:
    import ray

    try:
        facts: dict[str, Any] = ray.get(reference, timeout=TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return facts


def node_facts(mark: str) -> dict[str, Any]:
    """What a node tells of itself: versions, GPUs, whether it sees the storage."""
    import torch
    from upath import UPath

    from clinfuse import __version__
    from clinfuse_platform.provenance import package_versions

    return {
        "versions": {"clinfuse": __version__, **package_versions()},
        "gpus": torch.cuda.device_count(),
        "sees_storage": UPath(mark).exists(),
    }


def _node_check(number: int, facts: dict[str, Any]) -> Check:
    name = f"node {number}"
    if "error" in facts:
        return Check(name=name, status="broken", found=facts["error"], todo="is clinfuse installed there?")
    if not facts["sees_storage"]:
        return Check(
            name=name,
            status="broken",
            found="does not see the storage",
            todo="use shared or object storage for --storage",
        )
    return Check(name=name, status="ok", found=f"{facts['gpus']} GPUs, sees the storage")


def _agreement(answers: list[dict[str, Any]]) -> Check:
    versions = [facts["versions"] for facts in answers if "versions" in facts]
    names = sorted({name for one in versions for name in one})
    differing = [name for name in names if len({str(one.get(name)) for one in versions}) > 1]
    if not differing:
        return Check(name="versions", status="ok", found=f"the same on {len(versions)} nodes")
    seen = [f"{name} {'/'.join(sorted({str(one.get(name)) for one in versions}))}" for name in differing]
    return Check(
        name="versions", status="broken", found=", ".join(seen), todo="install the same versions everywhere"
    )
