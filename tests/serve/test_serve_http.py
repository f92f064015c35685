"""The HTTP contract over real HTTP, members in this process: replies, geometry, refusals, repeatability."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from clinfuse_serve.client import AsyncClient, Client, ServiceError
from clinfuse_serve.limits import Limits
from clinfuse_serve.security import token_digest
from PIL import Image

from clinfuse import RESEARCH_USE
from clinfuse.outputs import nifti_bytes
from clinfuse.presets import Preset, load_presets

Start = Callable[..., str]
Pair = dict[str, Path]
TOKEN = "a-token-of-20-letters"


def post(
    url: str, files: dict[str, Any], params: dict[str, Any] | str = "{}", **options: Any
) -> httpx.Response:
    text = params if isinstance(params, str) else json.dumps(params)
    opened = {k: (v.name, v.read_bytes()) if isinstance(v, Path) else ("x", v) for k, v in files.items()}
    form = {"data": {"params": text}, "files": opened or None}
    return httpx.post(f"{url}/v1/fuse", timeout=120, trust_env=False, **form, **options)


def masks_of(pair: Pair) -> dict[str, Any]:
    return {roi: pair[roi] for roi in ("brain", "bone", "lesion") if roi in pair}


def direct(pipeline: Any, pair: Pair, **options: Any) -> Any:
    """The same pair through the pipeline itself."""
    from clinfuse_prep.prepare import prepare_pair

    case = prepare_pair(
        pair["anatomy"], pair["companion"], **{r: pair[r] for r in pair if r in ("brain", "bone", "lesion")}
    )
    return pipeline(case, **options), case


def test_served_volume_equals_the_pipeline_and_has_the_anatomys_geometry(
    local_service: Start, nifti_pair: Pair, pipeline: Any
) -> None:
    from clinfuse_prep.geometry import to_source_grid

    reply = post(local_service(), nifti_pair, {"preset": "bone_tumor", "seed": 4})
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/gzip"
    assert reply.headers["x-clinfuse-members"] == "3/3" and reply.headers["x-clinfuse-degraded"] == "false"
    assert reply.headers["x-research-use"] == RESEARCH_USE
    served = nib.Nifti1Image.from_bytes(__import__("gzip").decompress(reply.content))
    source = nib.load(nifti_pair["anatomy"])
    assert served.shape == source.shape and nib.aff2axcodes(served.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(served.affine, source.affine)
    result, case = direct(pipeline, nifti_pair, preset="bone_tumor", seed=4)
    expected, _ = to_source_grid(result.fused, case)
    np.testing.assert_allclose(np.asarray(served.dataobj), expected, atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_another_image(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    replies = [post(url, nifti_pair, {"seed": seed}).content for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_bundle_holds_all_maps_and_the_sidecar(local_service: Start, nifti_pair: Pair) -> None:
    with Client(local_service()) as client:
        reply = client.fuse(
            nifti_pair["anatomy"],
            nifti_pair["companion"],
            masks=masks_of(nifti_pair),
            weights={"beta": 3.0},
            members=2,
            inputs=True,
        )
        facts = client.describe(case=reply.case, weights={"beta": 3.0}, members=2)
    assert {"fused", "uncertainty", "anatomy", "companion"} <= set(reply.info["Files"])
    assert set(reply.info["Files"].values()) < set(reply.files)
    assert reply.info["weights"]["beta"] == 3.0 and reply.info["members_asked"] == 2 and not reply.degraded
    assert "Smith" not in json.dumps(reply.info) + " ".join(reply.files)
    assert facts.maps["fused"].mean == pytest.approx(
        mean_of(reply.files, reply.info["Files"]["fused"]), abs=1e-5
    )
    assert facts.members_used == 2 and facts.shape == (12, 32, 28) and facts.case == reply.case


def mean_of(files: dict[str, bytes], name: str) -> float:
    import gzip

    return float(np.mean(nib.Nifti1Image.from_bytes(gzip.decompress(files[name])).get_fdata()))


def test_png_slice_in_png_out_in_place(local_service: Start, png_pair: Pair) -> None:
    url = local_service()
    reply = post(url, png_pair, {"weights": {"alpha": 10, "beta": 0.01}})
    assert reply.headers["content-type"] == "image/png"
    fused = np.asarray(Image.open(io.BytesIO(reply.content)), dtype=float)
    anatomy = np.asarray(Image.open(png_pair["anatomy"]), dtype=float)
    assert fused.shape == anatomy.shape == (96, 80)
    right = np.corrcoef(fused.ravel(), anatomy.ravel())[0, 1]
    turned = [
        np.corrcoef(fused[::a, ::b].ravel(), anatomy.ravel())[0, 1] for a, b in ((-1, 1), (1, -1), (-1, -1))
    ]
    assert right > max(turned) + 0.02
    nifti = post(url, png_pair, {"format": "nifti", "compress": False})
    assert nifti.headers["content-type"] == "application/octet-stream"
    assert nib.Nifti1Image.from_bytes(nifti.content).shape == (80, 96, 1)


def test_a_kept_case_needs_no_images_and_a_forgotten_one_says_so(
    local_service: Start, nifti_pair: Pair
) -> None:
    url = local_service(Limits(kept_s=60.0))
    first = post(url, nifti_pair, {"output": "json"})
    token = first.headers["x-clinfuse-case"]
    again = post(url, {}, {"output": "json", "case": token, "preset": "stroke"})
    assert again.status_code == 200 and again.json()["info"]["preset"] == "stroke"
    assert again.json()["seconds"]["prepare"] < 0.1
    gone = post(url, {}, {"case": "case0000"})
    assert gone.status_code == 410 and "again" in gone.json()["todo"]


def test_a_slab_equals_the_same_slices_of_the_whole(local_service: Start, nifti_pair: Pair) -> None:
    import gzip

    url = local_service()
    whole = post(url, nifti_pair, {"seed": 3})
    token = whole.headers["x-clinfuse-case"]
    part = post(url, {}, {"seed": 3, "case": token, "slab": [4, 6]})
    image = nib.Nifti1Image.from_bytes(gzip.decompress(whole.content))
    slab = nib.Nifti1Image.from_bytes(gzip.decompress(part.content))
    assert slab.shape == (28, 32, 2) and nib.aff2axcodes(slab.affine) == ("R", "A", "S")
    np.testing.assert_allclose(
        np.asarray(slab.dataobj), np.asarray(image.dataobj)[::-1, :, 4:6], rtol=0, atol=1e-6
    )
    assert slab.affine @ [27, 0, 1, 1] == pytest.approx(image.affine @ [0, 0, 5, 1], abs=1e-4)
    refused(post(url, {}, {"case": token, "slab": [11, 13]}), 422, "slab")


def refused(reply: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    text = json.dumps(problem)
    for word in words:
        assert word in text, text
    assert "Smith" not in text and "/tmp" not in text and reply.headers["x-request-id"] in problem["instance"]
    return problem


def test_bad_input_is_refused_with_reasons(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    ct, mr = nifti_pair["companion"], nifti_pair["anatomy"]
    refused(post(url, {"anatomy": mr}), 422, "companion image is missing")
    refused(post(url, {}), 422, "anatomy and the companion image is missing")
    refused(post(url, {"anatomy": mr, "companion": b"GIF89a"}), 422, "not of a kind")
    refused(post(url, {"anatomy": mr, "companion": ct.read_bytes()[:500]}), 422, "companion")
    refused(post(url, nifti_pair, {"preset": "nonsense"}), 422, "no such preset", "balanced")
    refused(post(url, nifti_pair, {"weights": {"beta": 99}}), 422, "weights.beta")
    refused(post(url, nifti_pair, {"members": 9}), 422, "at most 3")
    refused(post(url, nifti_pair, {"samples": 16, "jitters": 16}), 422, "too many samples")
    refused(post(url, nifti_pair, "{"), 422, "params")
    refused(post(url, nifti_pair, {"image": "interval"}), 422, "no interval map")
    refused(post(url, {}, {"example": "x"}), 422, "no such example")
    refused(post(url, {}, {"example": "../../etc"}), 422, "no such example")
    refused(httpx.get(f"{url}/nowhere", trust_env=False), 404)
    refused(httpx.get(f"{url}/v1/fuse", trust_env=False), 405)
    broken = nib.load(mr)
    data = broken.get_fdata(dtype=np.float32)
    data[3, 3, 3] = np.nan
    refused(post(url, {**nifti_pair, "anatomy": nifti_bytes(data, broken.affine)}), 422, "non-finite")


def test_a_header_that_claims_60000_cubed_costs_nothing(local_service: Start, nifti_pair: Pair) -> None:
    header = bytearray(nifti_bytes(np.zeros((2, 2, 2), np.float32), np.eye(4)))
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    refused(post(local_service(), {**nifti_pair, "anatomy": bytes(header)}), 422, "too large", "30000")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_stopped(local_service: Start, chunked: bool) -> None:
    url = local_service(Limits(body_bytes=100_000))
    body = (bytes(10_000) for _ in range(200)) if chunked else bytes(2_000_000)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="anatomy"; filename="x"\r\n\r\n'
    content = (piece for part in ([head], body) for piece in part) if chunked else head + body
    try:
        reply = httpx.post(f"{url}/v1/fuse", content=content, headers=kind, trust_env=False)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return
    assert reply.status_code == 413 and reply.json()["expected"] == "at most 100000 bytes"


def test_malformed_multipart_is_a_problem(local_service: Start) -> None:
    url = local_service()
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for content in (
        b"",
        b"--x\r\n\r\nnonsense",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    ):
        reply = httpx.post(f"{url}/v1/fuse", content=content, headers=kind, trust_env=False)
        assert 400 <= reply.status_code < 500
        assert reply.headers["content-type"] == "application/problem+json"


def test_token_is_asked_of_all_but_page_and_health(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service(digest=token_digest(TOKEN))
    for path in ("/", "/healthz"):
        assert httpx.get(url + path, trust_env=False).status_code == 200
    for path in ("/v1/presets", "/v1/models", "/v1/examples", "/metrics", "/openapi.json", "/info/"):
        reply = httpx.get(url + path, trust_env=False)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    refused(post(url, nifti_pair), 401, "token")
    with Client(url, TOKEN) as client:
        assert client.models()[0].members == 3
    with Client(url, TOKEN + "x") as client, pytest.raises(ServiceError, match="HTTP 401"):
        client.models()


def test_other_sites_pages_and_other_hosts_names_are_refused(local_service: Start) -> None:
    url = local_service()
    refused(httpx.get(f"{url}/v1/presets", headers={"Origin": "http://evil.example"}, trust_env=False), 403)
    refused(httpx.get(f"{url}/v1/presets", headers={"Host": "evil.example"}, trust_env=False), 403)
    own = httpx.get(f"{url}/v1/presets", headers={"Origin": url}, trust_env=False)
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert own.headers["x-content-type-options"] == "nosniff"


def test_a_full_queue_answers_429_with_a_time(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service(Limits(queue=1, at_once=1))
    statuses: list[int] = []

    def one() -> None:
        reply = post(url, nifti_pair, {"samples": 4, "output": "json"})
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1 and reply.json()["title"] == "the queue is full"
        statuses.append(reply.status_code)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429} and len(statuses) == 5


def test_deadline_leaves_out_latecomers(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    reply = post(url, nifti_pair, {"steps": 400, "deadline_s": 0.1})
    problem = refused(reply, 503, "no ensemble member answered")
    assert [row["member"] for row in problem["missing"]] == [0, 1, 2] and reply.headers["retry-after"]


def test_presets_change_hot(local_service: Start, nifti_pair: Pair) -> None:
    with Client(local_service()) as client:
        assert {"balanced", "stroke"} <= {row.name for row in client.presets()}
        client.put_preset(Preset(name="ours", description="A test.", beta=9.0))
        assert (
            client.describe(
                nifti_pair["anatomy"], nifti_pair["companion"], masks=masks_of(nifti_pair), preset="ours"
            ).info["weights"]["beta"]
            == 9.0
        )
    url = client.url
    refused(httpx.put(f"{url}/v1/presets/bad", json={"alpha": 99}, trust_env=False), 422, "0 <= alpha <= 10")
    refused(httpx.put(f"{url}/v1/presets/Bad", json={}, trust_env=False), 422, "name")
    refused(httpx.put(f"{url}/v1/presets/bad", json={"x": 1}, trust_env=False), 422, "body.x")


def test_information_and_metrics(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    with Client(url) as client:
        health, model = client.health(), client.models()[0]
        assert (health.status, health.members_up, health.missing) == ("ok", 3, [])
        assert model.kind == "student" and len(model.model_hash) == 16 and not model.calibrated
        client.describe(nifti_pair["anatomy"], nifti_pair["companion"], masks=masks_of(nifti_pair))
        text = client.metrics()
    assert 'clinfuse_requests_total{route="/v1/fuse",status="200"} 1' in text
    assert 'clinfuse_seconds_count{phase="fuse"} 1' in text and "clinfuse_members_up 3" in text
    assert "Smith" not in text and "case" not in text.replace("clinfuse_kept_case", "").replace(
        "Cases", ""
    ).replace("cases", "")


def test_openapi_describes_the_contract(local_service: Start) -> None:
    schema = httpx.get(f"{local_service()}/openapi.json", trust_env=False).json()
    assert {
        "/v1/fuse",
        "/v1/presets",
        "/v1/presets/{name}",
        "/v1/models",
        "/healthz",
        "/metrics",
        "/info/",
        "/infer/{model}",
    } <= set(schema["paths"])
    assert {"401", "413", "422", "429", "503"} <= set(schema["paths"]["/v1/fuse"]["post"]["responses"])
    assert "multipart/form-data" in schema["paths"]["/v1/fuse"]["post"]["requestBody"]["content"]
    assert "FuseParams" in schema["components"]["schemas"]


def test_page_loads_and_is_closed(local_service: Start) -> None:
    reply = httpx.get(local_service(), trust_env=False)
    assert reply.status_code == 200 and "Research use only" in reply.text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_monai_label_shape(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    info = httpx.get(f"{url}/info/", trust_env=False).json()
    assert {"name", "version", "labels", "models", "trainers", "strategies", "scoring", "datastore"} <= set(
        info
    )
    files = {role: path.read_bytes() for role, path in masks_of(nifti_pair).items()}
    files |= {"file": nifti_pair["anatomy"].read_bytes(), "label": nifti_pair["companion"].read_bytes()}
    options: dict[str, Any] = {
        "data": {"params": '{"preset": "stroke", "result_dtype": "x"}'},
        "trust_env": False,
        "timeout": 60,
    }
    reply = httpx.post(f"{url}/infer/clinfuse?image=", files=files, **options)
    assert reply.status_code == 200
    from email.parser import BytesParser

    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    params, file = BytesParser().parsebytes(head + reply.content).get_payload()
    assert json.loads(params.get_payload())["clinfuse"]["info"]["preset"] == "stroke"
    assert file.get_filename().endswith(".nii.gz") and file.get_payload(decode=True)[:2] == b"\x1f\x8b"
    refused(httpx.post(f"{url}/infer/other", files=files, **options), 404, "clinfuse")


def test_bundle_is_a_plain_zip(local_service: Start, nifti_pair: Pair) -> None:
    reply = post(local_service(), nifti_pair, {"output": "bundle"})
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        assert all("/" not in name and name.startswith("sub-case") for name in archive.namelist())


def test_progress_is_streamed_and_the_result_is_the_same(local_service: Start, nifti_pair: Pair) -> None:
    told: list[tuple[int, int]] = []
    images = (nifti_pair["anatomy"], nifti_pair["companion"])
    with Client(local_service()) as client:
        plain = client.fuse(*images, masks=masks_of(nifti_pair), seed=2)
        streamed = client.fuse(
            *images,
            masks=masks_of(nifti_pair),
            seed=2,
            progress=lambda done, total: told.append((done, total)),
        )
        assert streamed.files == plain.files and streamed.case == plain.case
        assert told == [(k, 3) for k in range(4)]
        with pytest.raises(ServiceError, match="companion image is missing"):
            client.fuse(images[0], progress=lambda *_: None)
        with pytest.raises(ServiceError, match="HTTP 503"):
            Client(client.url, retries=0).fuse(
                case=plain.case, steps=400, deadline_s=0.1, progress=lambda *_: None
            )


def test_async_clients_work_side_by_side(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()

    async def all_at_once() -> list[float]:
        async with AsyncClient(url) as client:
            facts = await asyncio.gather(
                *(
                    client.describe(
                        nifti_pair["anatomy"], nifti_pair["companion"], masks=masks_of(nifti_pair), seed=seed
                    )
                    for seed in (1, 2, 1)
                )
            )
            reply = await client.fuse(case=facts[0].case, seed=1)
            assert reply.members_used == 3 and (await client.health()).status == "ok"
        return [row.maps["fused"].mean for row in facts]

    one, two, again = asyncio.run(all_at_once())
    assert one == again != two


def test_maps_on_the_ras_grid(local_service: Start, nifti_pair: Pair) -> None:
    reply = post(local_service(), nifti_pair, {"grid": "ras", "compress": False})
    image = nib.Nifti1Image.from_bytes(reply.content)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and image.shape == (28, 32, 12)


def test_a_gone_client_ends_the_work(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    with pytest.raises(httpx.ReadTimeout):
        form = {"data": {"params": json.dumps({"steps": 20, "samples": 7, "jitters": 2})}}
        files = {role: path.read_bytes() for role, path in nifti_pair.items()}
        httpx.post(f"{url}/v1/fuse", files=files, timeout=1, trust_env=False, **form)
    for _ in range(150):
        if "clinfuse_cancelled_total 1" in httpx.get(f"{url}/metrics", trust_env=False).text:
            return
        time.sleep(0.2)
    raise AssertionError("the request was not cancelled")


def test_demo_cases_come_from_the_service_and_are_marked_simulated(local_service: Start) -> None:
    with Client(local_service()) as client:
        rows = client.examples()
        assert len(rows) == 4 and all(row.simulated for row in rows)
        facts = client.describe(example=rows[3].id, slab=(40, 41), members=1, steps=1)
        assert (
            facts.info["Simulated"] is True
            if "Simulated" in facts.info
            else facts.info["simulated_companion"]
        )
        with pytest.raises(ServiceError, match="simulated-tumour"):
            client.describe(example="nobody")


def test_an_exported_preset_is_taken_as_it_is(local_service: Start) -> None:
    """The JSON beside the YAML of `clinfuse pareto --export` is the body of PUT /v1/presets/{name}."""
    preset = replace(load_presets()["bone_tumor"], beta=3.217, description="Found. " + "x" * 393)
    body = {key: value for key, value in preset.as_dict().items() if key != "name"}
    url = local_service()
    reply = httpx.put(f"{url}/v1/presets/bone_tumor", content=json.dumps(body, indent=1), trust_env=False)
    assert reply.status_code == 200, reply.text
    with Client(url) as client:
        row = next(row for row in client.presets() if row.name == "bone_tumor")
    assert row.model_dump() == preset.as_dict()
    bare = httpx.put(f"{url}/v1/presets/bare", json={}, trust_env=False).json()
    assert bare == Preset(name="bare").as_dict()
