"""Every cluster file against Ray's own schema, the Kubernetes manifests against the fields KubeRay knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RAY_FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "platform" / "clusters").glob("[!k]*.yaml"))]
KUBE_FILES = sorted((ROOT / "platform" / "clusters").glob("kuberay-*.yaml"))
POD_FIELDS = {"containers", "volumes", "tolerations", "nodeSelector", "initContainers"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
HEAD_FIELDS = {"serviceType", "rayStartParams", "template"}
CLUSTER_FIELDS = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
JOB_FIELDS = {"clusterSelector", "entrypoint", "backoffLimit", "submissionMode"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_ray_accepts_the_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(path)))


def test_the_root_file_has_head_gpu_and_prep_workers() -> None:
    config = read(ROOT / "cluster.yaml")
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu_worker"]["resources"]["GPU"] >= 1 and types["gpu_worker"]["max_workers"] > 1
    assert "GPU" not in types["prep_worker"]["resources"] and types["prep_worker"]["max_workers"] > 1
    assert any("clinfuse" in command for command in config["setup_commands"])


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_nothing_is_open_and_no_secret_is_written(path: Path) -> None:
    text = path.read_text()
    config = read(path)
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start and "RAY_AUTH_MODE=token" in start
    assert "RAY_AUTH_MODE=token" in " ".join(config["worker_start_ray_commands"])
    assert "IpPermissions" not in json.dumps(config)
    assert not re.search(r"AKIA|BEGIN .*PRIVATE KEY|RAY_AUTH_TOKEN=", text)


def test_the_pinned_ray_is_the_image_version() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for path in (ROOT / "platform" / "docker" / "Dockerfile", ROOT / "cluster.yaml"):
        assert f"rayproject/ray:{pinned[1]}-py311" in path.read_text()


def test_torch_is_pinned_without_a_local_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line), line


@pytest.mark.parametrize("path", KUBE_FILES, ids=lambda path: path.name)
def test_manifests_use_fields_that_kuberay_knows(path: Path) -> None:
    manifest = read(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["kind"] in ("RayCluster", "RayJob", "RayService")
    spec = manifest["spec"]
    if manifest["kind"] == "RayJob":
        assert set(spec) <= JOB_FIELDS
        return
    assert set(spec) <= CLUSTER_FIELDS and set(spec["headGroupSpec"]) <= HEAD_FIELDS
    pods = [spec["headGroupSpec"]["template"]]
    for group in spec["workerGroupSpecs"]:
        assert (
            set(group) <= GROUP_FIELDS and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        )
        pods.append(group["template"])
    for pod in pods:
        assert set(pod["spec"]) <= POD_FIELDS
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"] and container["image"]
            names = {volume["name"] for volume in pod["spec"]["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
