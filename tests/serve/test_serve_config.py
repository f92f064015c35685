"""The one config file: the same here, on a cluster and on Kubernetes, checked before anything starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from certificate import made_certificate
from clinfuse_serve.config import ServiceArgs, config_for, read_config, with_model
from clinfuse_serve.proxy import Place, check_same, place_of
from clinfuse_serve.verbs import IN_FILE, SERVE, file_config

from clinfuse.errors import ConfigError

FILE = Path(__file__).parents[2] / "serve" / "clinfuse.yaml"


def test_config_file_is_the_one_that_is_deployed(tmp_path: Path) -> None:
    config = read_config(FILE)
    made = config_for("/srv/clinfuse/models/current", ServiceArgs(members=3), "0.0.0.0", 8000)
    app, own = config["applications"][0], made["applications"][0]
    assert {k: app[k] for k in ("name", "route_prefix", "import_path", "logging_config", "deployments")} == {
        k: own[k] for k in ("name", "route_prefix", "import_path", "logging_config", "deployments")
    }
    assert with_model(made, "/other")["applications"][0]["deployments"][3]["user_config"] == {
        "model": "/other"
    }
    text = FILE.read_text()
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
    assert config == read_config(FILE)
    app, head = config["applications"][0], manifest["spec"]["rayClusterConfig"]["headGroupSpec"]
    pod = head["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert app["args"]["token_file"] == f"{mounted['tokens']}/token"
    assert app["deployments"][0]["user_config"]["model"].startswith(mounted["data"])


def parsed(*words: str) -> argparse.Namespace:
    """The verb's arguments as typed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    SERVE.add_arguments(parser)
    return parser.parse_args(words)


def test_deploying_needs_a_cluster_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words, problem in ((["deploy", "x.yaml"], "cluster that stays"), (["deploy"], "deploys a file")):
        with pytest.raises(ConfigError, match=problem):
            SERVE.run(parsed(*words))


def test_a_certificate_beside_a_config_file_is_deployed(tmp_path: Path) -> None:
    certificate = made_certificate(tmp_path)
    config = file_config(str(FILE), parsed("deploy", str(FILE), "--certificate", *certificate))
    assert place_of(config["http_options"]) == Place("0.0.0.0", 8000, certificate)
    assert place_of(config["http_options"]).url == "https://127.0.0.1:8000"
    assert file_config(str(FILE), parsed("deploy", str(FILE))) == read_config(FILE)
    with pytest.raises(ConfigError, match="certificate cannot be read"):
        file_config(str(FILE), parsed(str(FILE), "--certificate", *certificate[:1], "nowhere"))
    with pytest.raises(ConfigError, match="certificate and its key"):
        place_of({"host": "::1", "port": 1, "ssl_certfile": "c"})


@pytest.mark.parametrize("words", [["deploy", str(FILE), "--address", "auto"], [str(FILE)]])
def test_flags_that_a_config_file_holds_are_refused_beside_it(words: list[str]) -> None:
    more = ["--host", "127.0.0.1", "--port", "8000", "--token-file", "t", "--members", "2", "--max-mb", "3"]
    with pytest.raises(ConfigError) as refused:
        SERVE.run(parsed(*words, *more))
    assert refused.value.found == "--host, --port, --token-file, --members, --max-mb"
    for place in ("http_options.host", "args.token_file", "args.members", "args.limits.body_bytes"):
        assert place in refused.value.todo
    flags = {name for name in vars(parsed()) if name not in ("model", "config", "certificate", "address")}
    assert flags == set(IN_FILE)


def test_a_running_serve_takes_no_other_certificate() -> None:
    plain, safe = Place("127.0.0.1", 8000), Place("127.0.0.1", 8000, ("c", "k"))
    check_same(plain, plain)
    check_same(safe, safe)
    check_same(safe, plain)
    with pytest.raises(ConfigError, match="without this certificate; expected plain HTTP; found HTTPS"):
        check_same(plain, safe)
    with pytest.raises(ConfigError, match="without this certificate"):
        check_same(safe, Place("127.0.0.1", 8000, ("d", "k")))
    with pytest.raises(ConfigError, match="another place"):
        check_same(safe, Place("127.0.0.1", 8001, ("c", "k")))
