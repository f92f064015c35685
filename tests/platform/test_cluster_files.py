"""Every cluster file against Ray's own schema, the Kubernetes manifests against one of the fields KubeRay knows."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RAY_FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "platform" / "clusters").glob("[!jk]*.yaml"))]
KUBE_FILES = sorted((ROOT / "platform" / "clusters").glob("kuberay-*.yaml"))
# Ray's metrics ask nobody for a token; a port that does not exist keeps them closed.
CLOSED = {"AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}
SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text(encoding="utf-8"))


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
    workers = " ".join(config["worker_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in workers
    assert all("RAY_enable_metrics_collection=0" in commands for commands in (start, workers))
    assert all(f"{name}={value}" in start for name, value in CLOSED.items())
    shells = [*config.get("docker", {}).get("run_options", []), *config["setup_commands"]]
    assert any("RAY_AUTH_MODE=token" in words for words in shells), "what is typed there shows the token, too"
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
def test_manifests_fit_kuberay_s_fields(path: Path) -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read(path), SCHEMA)
    for cluster in clusters(read(path)["spec"]):
        # set by hand in the containers, the token would be the containers' only, and the operator's own calls refused
        assert cluster["authOptions"] == {"mode": "token", "secretName": "clinfuse-auth"}
    for pod in pods(read(path)["spec"]):
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            given = {one["name"]: one["value"] for one in container["env"]}
            assert given == {**CLOSED, "RAY_enable_metrics_collection": "false"}


def clusters(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A manifest's cluster, if it has one."""
    cluster = spec.get("rayClusterConfig", spec)
    return [cluster] if "headGroupSpec" in cluster else []


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod specs of a manifest's cluster, if it has one."""
    found = clusters(spec)
    groups = [group for one in found for group in (one["headGroupSpec"], *one["workerGroupSpecs"])]
    return [group["template"]["spec"] for group in groups]


def test_the_schema_refuses_what_kuberay_does_not_know() -> None:
    import jsonschema

    for change in ({"replica": 1}, {"replicas": "2"}, {"rayStartParams": {"num-cpus": 2}}):
        manifest = read(ROOT / "platform" / "clusters" / "kuberay-cluster.yaml")
        manifest["spec"]["workerGroupSpecs"][0] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, SCHEMA)


def test_every_kind_of_manifest_is_there_and_the_service_s_config_is_serve_s() -> None:
    from ray.serve.schema import ServeDeploySchema

    manifests = {read(path)["kind"]: read(path) for path in KUBE_FILES}
    assert set(manifests) == {"RayCluster", "RayJob", "RayService"}
    config = yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert application.args["token_file"], "beyond loopback only with a token"


def test_jobs_from_a_laptop_find_every_room() -> None:
    environment = read(ROOT / "platform" / "clusters" / "job.yaml")
    rooms = environment["env_vars"]["PYTHONPATH"].split(":")
    assert all(any((ROOT / room).glob("clinfuse*/__init__.py")) for room in rooms) and len(rooms) == 5


PLACEHOLDERS = {
    "onprem.yaml": ["head.clinfuse.invalid", "worker-1.clinfuse.invalid"],
    "gcp.yaml": ["project.invalid"],
}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_what_must_be_filled_in_cannot_work_by_accident(name: str) -> None:
    text = (ROOT / "platform" / "clusters" / name).read_text()
    for word in PLACEHOLDERS[name]:
        assert word in text and word.endswith(".invalid")  # a name that never resolves (RFC 2606)


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_the_source_s_folder_cannot_be_imported_in_the_package_s_stead(path: Path) -> None:
    """Jobs start in the home folder: one named `clinfuse` there would be found before the installed package."""
    mounted = [Path(target).name for target, source in read(path)["file_mounts"].items() if source == "."]
    assert mounted and not any(name.isidentifier() for name in mounted)
