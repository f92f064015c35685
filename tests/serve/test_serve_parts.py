"""Tokens, origins, limits, kept cases, presets that merge, metrics, uploads, parameters: no HTTP, no Ray."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from clinfuse_serve import metrics, pages, problems, security
from clinfuse_serve.application import parse_params
from clinfuse_serve.backend import Order, run_order
from clinfuse_serve.config import ServiceArgs, config_for, read_config, with_model
from clinfuse_serve.drawing import Ask, draw_together, fits_batch
from clinfuse_serve.kept import KeptCase, KeptCases, case_token, check_roles
from clinfuse_serve.limits import Limits
from clinfuse_serve.monai_label import known_params, multipart
from clinfuse_serve.parts import join, split
from clinfuse_serve.preset_table import PresetTable
from clinfuse_serve.schemas import FuseParams, Weights
from clinfuse_serve.uploads import PNG_SIGNATURE, received, suffix_of
from clinfuse_serve.verbs import SERVE, parse_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import Preset, load_presets

TOKEN = "a-token-of-20-letters"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_only_loopback_needs_no_token(host: str, loopback: bool) -> None:
    assert security.is_loopback(host) is loopback
    security.require_token_beyond_loopback(host, TOKEN)
    if loopback:
        security.require_token_beyond_loopback(host, None)
    else:
        with pytest.raises(ConfigError, match="token"):
            security.require_token_beyond_loopback(host, None)


def test_token_file_is_read_and_weak_tokens_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nsecond line\n")
    assert security.read_token(file) == TOKEN
    for text in ("", "short", "with blank inside it all", "ümlaut-ümlaut-ümlaut"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="token is not usable"):
            security.read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        security.read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("header", "right"),
    [(f"Bearer {TOKEN}", True), (f"bearer {TOKEN}", True), (f"Basic {TOKEN}", False), (TOKEN, False)],
)
def test_authorization_header(header: str, right: bool) -> None:
    assert security.authorized(header, security.token_digest(TOKEN)) is right
    assert security.authorized(None, None)
    assert not security.authorized(None, security.token_digest(TOKEN))
    assert not security.authorized(f"Bearer {TOKEN}x", security.token_digest(TOKEN))


def test_foreign_pages_and_names_are_seen() -> None:
    assert not security.foreign_origin(None, "127.0.0.1:8000")
    assert not security.foreign_origin("http://127.0.0.1:8000", "127.0.0.1:8000")
    assert security.foreign_origin("http://evil.example", "127.0.0.1:8000")
    assert security.foreign_origin("null", "127.0.0.1:8000")
    assert not security.foreign_host("localhost:8000", True)
    assert not security.foreign_host("[::1]:8000", True)
    assert security.foreign_host("evil.example:8000", True)
    assert not security.foreign_host("clinic.example:8000", False)


def test_limits_are_bounded() -> None:
    with pytest.raises(ConfigError, match="1 <= queue <= 10000"):
        Limits(queue=0)


def test_problems_say_what_was_expected_and_hide_the_unforeseen() -> None:
    wrong = InputError("no bone", expected="bone", found="none", case="c1", todo="look")
    body = json.loads(problems.from_error(wrong).body("r1"))
    assert body == {
        "type": "about:blank",
        "title": "no bone",
        "status": 422,
        "expected": "bone",
        "found": "none",
        "todo": "look",
        "case": "c1",
        "instance": "urn:request:r1",
    }
    hidden = problems.from_error(RuntimeError("/home/someone/Smith^John.nii"))
    assert hidden.status == 500 and b"Smith" not in hidden.body()
    missing = problems.no_members(3, {1: "failed", 0: "down"})
    assert [row["member"] for row in json.loads(missing.body())["missing"]] == [0, 1]
    error = problems.ProblemError(missing)
    assert pickle.loads(pickle.dumps(error)).problem == missing


def test_kept_cases_forget_the_oldest_and_the_idle(tiny_case: Case) -> None:
    now = [0.0]
    size = KeptCase("a", tiny_case).bytes
    kept = KeptCases(2 * size, 10, clock=lambda: now[0])
    for token in "ab":
        kept.put(KeptCase(token, tiny_case))
    assert kept.get("a") is not None
    kept.put(KeptCase("c", tiny_case))
    assert kept.get("b") is None and kept.get("a") is not None and kept.bytes == 2 * size
    now[0] = 11
    assert kept.get("a") is None and len(kept) == 0
    small = KeptCases(size - 1, 10)
    small.put(KeptCase("d", tiny_case))
    assert len(small) == 0


def test_case_token_depends_on_bytes_roles_and_secret_only(tmp_path: Path) -> None:
    one, two = tmp_path / "Smith^John.nii", tmp_path / "x.nii"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    token = case_token(b"s", {"anatomy": one})
    assert token == case_token(b"s", {"anatomy": two}) and token.isalnum()
    assert token != case_token(b"t", {"anatomy": one}) != case_token(b"s", {"companion": one})
    two.write_bytes(b"abd")
    assert token != case_token(b"s", {"anatomy": two})


def test_both_images_are_needed() -> None:
    with pytest.raises(InputError, match="companion image is missing"):
        check_roles({"anatomy": 1})


CHANGES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("pqr"), st.integers(1, 9)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.randoms())
def test_replicas_agree_on_presets_whatever_the_order_of_news(changes, random) -> None:  # type: ignore[no-untyped-def]
    tables = [PresetTable(load_presets(), str(k)) for k in range(3)]
    news = [tables[k].change(Preset(name=name, beta=float(beta))) for k, name, beta in changes]
    for table in tables:
        mine = list(news)
        random.shuffle(mine)
        for change in mine:
            table.merge(json.loads(json.dumps(change)))
    assert tables[0].presets() == tables[1].presets() == tables[2].presets()
    late = PresetTable(load_presets(), "late")
    late.merge(tables[0].changes())
    assert late.presets() == tables[0].presets()


def test_preset_names_are_plain_words() -> None:
    table = PresetTable(load_presets(), "0")
    for name in ("", "A", "a b", "../x", "a" * 65):
        with pytest.raises(ConfigError, match="name"):
            table.change(Preset(name=name))


def test_metrics_of_replicas_add_up() -> None:
    one, two = metrics.Metrics(), metrics.Metrics()
    for m, seconds in ((one, 0.02), (two, 0.2), (two, 400.0)):
        m.count("clinfuse_requests_total", route="/v1/fuse", status="200")
        m.observe("clinfuse_seconds", seconds, phase="fuse")
        m.set("clinfuse_members_up", 3)
    text = metrics.to_text(metrics.merge([one.snapshot(), json.loads(json.dumps(two.snapshot()))]))
    assert 'clinfuse_requests_total{route="/v1/fuse",status="200"} 3' in text
    assert "clinfuse_members_up 3" in text
    assert 'clinfuse_seconds_bucket{phase="fuse",le="0.025"} 1' in text
    assert 'clinfuse_seconds_bucket{phase="fuse",le="300"} 2' in text
    assert 'clinfuse_seconds_bucket{phase="fuse",le="+Inf"} 3' in text
    assert 'clinfuse_seconds_count{phase="fuse"} 3' in text
    assert two.quantile("clinfuse_seconds", 0.5, 9.0, phase="fuse") == 0.25
    assert two.quantile("clinfuse_seconds", 0.5, 9.0, phase="none") == 9.0


def png_head(width: int, height: int) -> bytes:
    return PNG_SIGNATURE + b"\x00\x00\x00\rIHDR" + struct.pack(">II", width, height)


def test_uploads_are_told_apart_and_removed() -> None:
    nifti = (348).to_bytes(4, "little") + bytes(344)
    files = {"anatomy": io.BytesIO(nifti), "companion": io.BytesIO(b"\x1f\x8b" + bytes(9))}
    with received(files, 100) as paths:
        folder = paths["anatomy"].parent
        assert {p.name for p in paths.values()} == {"anatomy.nii", "companion.nii.gz"}
        assert paths["anatomy"].read_bytes() == nifti
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert suffix_of(png_head(2, 2), "anatomy") == ".png"
    for data in (b"", b"GIF89a", b"%PDF-1.7", b"PK\x03\x04"):
        with pytest.raises(InputError, match="not of a kind"), received({"brain": io.BytesIO(data)}, 9):
            pass


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (0, 5)])
def test_a_picture_that_claims_too_much_is_refused(width: int, height: int) -> None:
    file = io.BytesIO(png_head(width, height))
    with pytest.raises(InputError, match="too large"), received({"anatomy": file}, 1 << 20):
        pass


def test_parameters_are_checked_and_named() -> None:
    params = parse_params('{"preset": "stroke", "weights": {"beta": 2}, "seed": 5}')
    assert params.weights.given() == {"beta": 2.0} and params.output == "image"
    for text, field in (
        ('{"steps": 0}', "steps"),
        ('{"weights": {"alpha": -1}}', "weights.alpha"),
        ('{"what": 1}', "what"),
        ('{"weights": {"eta": NaN}}', ""),
        ("[]", ""),
        ("{", ""),
    ):
        with pytest.raises(problems.ProblemError) as caught:
            parse_params(text)
        assert caught.value.problem.status == 422
        assert caught.value.problem.more["fields"][0]["field"].startswith(field)
    with pytest.raises(ValidationError):
        Weights(tau_mm=99)
    assert FuseParams().model_dump_json(exclude_defaults=True) == "{}"


def test_weights_on_the_command_line() -> None:
    assert parse_weights(["beta=2", " tau_mm = 1.5"]) == {"beta": 2.0, "tau_mm": 1.5}
    for word in ("beta", "beta=x", "=3"):
        with pytest.raises(ConfigError, match="KEY=NUMBER"):
            parse_weights([word])


def test_monai_label_parameters_keep_what_is_known() -> None:
    text = known_params('{"preset": ["stroke", "x"], "result_extension": ".nrrd", "seed": 3}', "case7")
    assert parse_params(text) == FuseParams(preset="stroke", seed=3, example="case7", format="nifti")
    with pytest.raises(InputError, match="not JSON"):
        known_params("{", "")


def test_multipart_reply_is_read_back_by_a_mime_parser() -> None:
    from email.parser import BytesParser

    body = multipart("b0", b'{"a": 1}', "x.nii.gz", b"\x1f\x8b\r\n\x00")
    message = BytesParser().parsebytes(b"Content-Type: multipart/form-data; boundary=b0\r\n\r\n" + body)
    params, file = message.get_payload()
    assert json.loads(params.get_payload()) == {"a": 1}
    assert file.get_filename() == "x.nii.gz" and file.get_payload(decode=True) == b"\x1f\x8b\r\n\x00"


def test_pages_need_nothing_from_elsewhere() -> None:
    own = {path: page for path, page in pages.pages().items() if not path.startswith("vendor/")}
    assert {"viewer.html", "study.html", "viewer.js", "style.css"} <= set(own)
    for path, page in own.items():
        text = page.data.decode()
        for foreign in (
            "http://",
            "https://",
            "//cdn",
            "@import",
            "style=",
            "onclick=",
            "eval(",
            "innerHTML",
        ):
            assert foreign not in text, (path, foreign)
        if path.endswith(".html"):
            assert "Research use only" in text and "<style" not in text
    assert "unsafe" not in pages.POLICY and "script-src 'self'" in pages.POLICY


def test_vendored_niivue_comes_with_its_licences() -> None:
    found = pages.pages()
    assert 500_000 < len(found["vendor/niivue.js"].data) < 1_000_000
    licences = found["vendor/LICENSES.txt"].data.decode()
    assert "BSD 2-Clause" in licences and "gl-matrix" in licences


def test_slabs_joined_equal_the_whole(pipeline: FusionPipeline, tiny_case: Case) -> None:
    preset = pipeline.resolve_preset("balanced")
    order = Order(preset=preset, seed=3)
    whole = run_order(pipeline, tiny_case, 0, order)
    orders = [replace(order, slab=slab) for slab in ((0, 5), (5, 10), (10, 12))]
    joined = join([run_order(pipeline, tiny_case, 0, part) for part in orders])
    np.testing.assert_allclose(joined[0].fused, whole[0].fused, atol=1e-5)
    np.testing.assert_allclose(joined[0].variance, whole[0].variance, rtol=1e-4)
    assert joined[0].residual_energy == pytest.approx(whole[0].residual_energy, rel=1e-3)
    assert [part.slab for part in split(order, 40)] == [(0, 16), (16, 32), (32, 40)]
    assert [part.slab for part in split(replace(order, slab=(5, 6)), 40)] == [(5, 6)]


def test_slices_drawn_together_equal_those_drawn_alone(pipeline: FusionPipeline, tiny_case: Case) -> None:
    orders = [
        Order(preset=pipeline.resolve_preset(name), seed=seed, slab=(k, k + 1), steps=steps)
        for name, seed, k, steps in (("balanced", 1, 3, 2), ("stroke", 2, 7, 2), ("balanced", 1, 3, 1))
    ]
    asks = [Ask(pipeline, order.part_of(tiny_case), order) for order in orders]
    assert all(fits_batch(*ask) for ask in asks)
    assert not fits_batch(pipeline, tiny_case, orders[0])
    for drawn, order in zip(draw_together(asks, 1), orders, strict=True):
        alone = run_order(pipeline, tiny_case, 1, order)
        np.testing.assert_allclose(drawn[0].fused, alone[0].fused, atol=1e-5)
        assert (drawn[0].member, drawn[0].steps) == (1, order.steps)


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


def test_a_degraded_answer_is_less_sure_everywhere(pipeline: FusionPipeline, tiny_case: Case) -> None:
    order = Order(preset=pipeline.resolve_preset("balanced"), seed=3)
    drawn = [sample for member in (0, 2) for sample in run_order(pipeline, tiny_case, member, order)]
    whole, degraded = (pipeline.combine(drawn, tiny_case, "balanced", asked=n, seed=3) for n in (2, 3))
    assert degraded.info["degraded"] and not whole.info["degraded"]
    assert degraded.info["widened"] == pytest.approx(1.5**0.5) and whole.info["widened"] == 1.0
    assert (degraded.uncertainty >= whole.uncertainty).all()
    assert degraded.uncertainty.mean() > whole.uncertainty.mean()
    np.testing.assert_array_equal(degraded.fused, whole.fused)
