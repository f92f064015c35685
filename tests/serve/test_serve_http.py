"""The HTTP contract over real HTTP, members in this process: replies, geometry, repeatability, streams, presets."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from clinfuse_serve.client import AsyncClient, Client, ServiceError
from clinfuse_serve.limits import Limits
from PIL import Image
from posting import Pair, Start, masks_of, post, refused

from clinfuse import RESEARCH_USE
from clinfuse.presets import Preset, load_presets


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
    assert "clinfuse_kept_case_hits_total 1" in httpx.get(f"{url}/metrics", trust_env=False).text
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
    options["data"] = {"params": '{"image": "interval"}'}
    refused(httpx.post(f"{url}/infer/clinfuse", files=files, **options), 422, "no interval map")


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
                case=plain.case, steps=120, deadline_s=0.1, progress=lambda *_: None
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
