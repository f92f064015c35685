"""A client that behaves as the one in 3D Slicer's MONAI Label plug-in: form by hand, reply read as cgi does.

It writes multipart with a boundary full of signs and whole paths as file names, adds `client_id`, and reads the reply
from the bare socket file, so that chunks instead of a length would end up in the image.
"""

from __future__ import annotations

import gzip
import http.client
import json
import mimetypes
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlparse

import nibabel as nib
import numpy as np
import pytest
from posting import Pair, Start, masks_of, post

BOUNDARY = "----------lImIt_of_THE_fIle_eW_$"


def form_of(fields: dict[str, str], files: dict[str, Path]) -> bytes:
    body = b""
    for key, value in fields.items():
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
    for key, path in files.items():
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        head = f'form-data; name="{key}"; filename="{path}"\r\nContent-Type: {kind}'
        body += f"--{BOUNDARY}\r\nContent-Disposition: {head}\r\n\r\n".encode() + path.read_bytes() + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n\r\n".encode()


def ask(url: str, method: str, selector: str, body: bytes | None = None) -> http.client.HTTPResponse:
    parsed = urlparse(url)
    connection = http.client.HTTPConnection(str(parsed.hostname), parsed.port, timeout=60)
    kind = {
        "content-type": f"multipart/form-data; boundary={BOUNDARY}",
        "content-length": str(len(body or b"")),
    }
    connection.request(method, selector, body, kind if body else {})
    return connection.getresponse()


def infer(url: str, model: str, image: str, params: dict[str, Any], files: dict[str, Path]) -> Any:
    """Status, then fields and files by name, as that client sees them."""
    fields = {"params": json.dumps({**params, "client_id": "user-xyz"})}
    selector = f"/infer/{quote_plus(model)}?image={quote_plus(image)}"
    reply = ask(url, "POST", selector, form_of(fields, files))
    if reply.status != 200 or "multipart" not in reply.getheader("content-type", ""):
        return reply.status, reply.read(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cgi = pytest.importorskip("cgi", reason="this Python has no cgi module any more")
    parts = cgi.FieldStorage(
        fp=reply.fp, environ={"REQUEST_METHOD": "POST"}, headers=reply.msg, keep_blank_values=True
    )
    return (
        reply.status,
        {part.name: part.value for part in parts.list if not part.filename},
        {part.filename: part.value for part in parts.list if part.filename},
    )


def test_connecting(local_service: Start) -> None:
    url = local_service()
    told = json.loads(ask(url, "GET", "/info/").read())
    assert told["name"] == "clinfuse" and "Research use only" in told["description"]
    model = told["models"]["clinfuse"]
    assert isinstance(model["type"], str) and isinstance(model["labels"], dict | list)
    assert model["dimension"] in (2, 3) and "balanced" in model["config"]["preset"]
    for key in ("trainers", "strategies", "scoring", "train_stats", "datastore"):
        assert isinstance(told[key], dict)
    assert ask(url, "GET", "/train/?check_if_running=true").status != 200  # how it learns that nothing trains


def test_inferring_from_files(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    files = {"label": nifti_pair["companion"], **masks_of(nifti_pair), "file": nifti_pair["anatomy"]}
    params = {"preset": ["stroke", "balanced"], "seed": 3, "result_extension": ".nrrd", "label_info": []}
    status, form, images = infer(url, "clinfuse", "", params, files)
    assert status == 200 and list(form) == ["params"] and len(images) == 1
    facts = json.loads(form["params"])
    assert facts["clinfuse"]["info"]["preset"] == "stroke" and "Research use only" in facts["description"]
    ((name, data),) = images.items()
    assert "/" not in name and name.endswith(".nii.gz") and "Smith" not in name + form["params"]
    fused = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(fused.affine, nib.load(nifti_pair["anatomy"]).affine)
    plain = post(url, nifti_pair, {"preset": "stroke", "seed": 3})
    assert plain.content == data


def test_inferring_from_the_servers_store(local_service: Start) -> None:
    url = local_service()
    (image, *_) = json.loads(ask(url, "GET", "/info/").read())["datastore"]["images"]
    params = {"slab": [40, 41], "steps": 1, "members": 1}
    status, form, images = infer(url, "clinfuse", image, params, {})
    assert status == 200 and len(images) == 1
    assert json.loads(form["params"])["clinfuse"]["shape"][0] == 1


def test_refusals_are_told(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    status, told, _ = infer(url, "clinfuse", "", {}, {"file": nifti_pair["anatomy"]})
    assert status == 422 and b"companion image is missing" in told
    status, told, _ = infer(url, "other model", "", {}, {"file": nifti_pair["anatomy"]})
    assert status == 404 and b"no such model" in told
