"""The one config file: the same here, on a cluster and on Kubernetes, checked before anything starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from clinfuse_serve.config import ServiceArgs, config_for, read_config, with_model
from clinfuse_serve.verbs import SERVE

from clinfuse.errors import ConfigError


def test_config_file_is_the_one_that_is_deployed(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "serve" / "clinfuse.yaml"
    config = read_config(file)
    made = config_for("/srv/clinfuse/models/current", ServiceArgs(members=3), "0.0.0.0", 8000)
    app, own = config["applications"][0], made["applications"][0]
    assert {k: app[k] for k in ("name", "route_prefix", "import_path", "logging_config", "deployments")} == {
        k: own[k] for k in ("name", "route_prefix", "import_path", "logging_config", "deployments")
    }
    assert with_model(made, "/other")["applications"][0]["deployments"][3]["user_config"] == {
        "model": "/other"
    }
    text = file.read_text()
    for before, after in (
        ("members: 3", "members: 2"),
        ("aggregators", "agregators"),
        ("device: cpu", "precision: half"),
        (
            "user_config: *version}\n      - {name: Member1",
            "user_config: {model: x}}\n      - {name: Member1",
        ),
        ("clinfuse_serve.config", "somebody.else"),
        ("applications:", "apps:"),
    ):
        assert before in text
        (tmp_path / "wrong.yaml").write_text(text.replace(before, after))
        with pytest.raises(ConfigError, match="config file"):
            read_config(tmp_path / "wrong.yaml")


def test_kubernetes_deploys_the_same_config_file() -> None:
    root = Path(__file__).parents[2]
    manifest = yaml.safe_load((root / "platform" / "clusters" / "kuberay-service.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert config == read_config(root / "serve" / "clinfuse.yaml")
    app, head = config["applications"][0], manifest["spec"]["rayClusterConfig"]["headGroupSpec"]
    pod = head["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert app["args"]["token_file"] == f"{mounted['tokens']}/token"
    assert app["deployments"][0]["user_config"]["model"].startswith(mounted["data"])


def test_deploying_needs_a_cluster_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    SERVE.add_arguments(parser)
    for words, problem in ((["deploy", "x.yaml"], "cluster that stays"), (["deploy"], "deploys a file")):
        with pytest.raises(ConfigError, match=problem):
            SERVE.run(parser.parse_args(words))
