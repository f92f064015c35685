"""Limits, problems, metrics, uploads and parameters: no HTTP, no Ray."""

from __future__ import annotations

import io
import json
import multiprocessing
import struct

import pytest
from clinfuse_serve import metrics, problems
from clinfuse_serve.application import parse_params
from clinfuse_serve.limits import Limits
from clinfuse_serve.monai_label import known_params, multipart
from clinfuse_serve.schemas import FuseParams, Weights
from clinfuse_serve.uploads import PNG_SIGNATURE, received, suffix_of
from pydantic import ValidationError

from clinfuse.errors import ConfigError, InputError


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
    here, there = multiprocessing.Pipe()
    here.send(problems.ProblemError(missing))
    assert there.recv().problem == missing, "lost between processes"


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


def test_numbers_are_printed_exactly() -> None:
    one = metrics.Metrics()
    one.count("clinfuse_requests_total", 1_234_567, route="/v1/fuse", status="200")
    one.set("clinfuse_unsure_share", 0.123456789)
    one.observe("clinfuse_seconds", 1234567.25, phase="fuse")
    text = metrics.to_text(one.snapshot())
    assert '{route="/v1/fuse",status="200"} 1234567\n' in text and "share 0.123456789\n" in text
    assert 'clinfuse_seconds_sum{phase="fuse"} 1234567.25\n' in text


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


def test_monai_label_parameters_keep_what_is_known() -> None:
    given = '{"preset": ["stroke", "x"], "result_extension": ".nrrd", "seed": 3, "slab": [1, 2], "output": "json"}'
    wanted = FuseParams(preset="stroke", seed=3, slab=(1, 2), example="case7", format="nifti")
    assert known_params(given, "case7") == wanted
    assert known_params("", "") == FuseParams(format="nifti")
    for text in ("{", "[]"):
        with pytest.raises(problems.ProblemError, match="params cannot be used"):
            known_params(text, "")


def test_multipart_reply_is_read_back_by_a_mime_parser() -> None:
    from email.parser import BytesParser

    body = multipart("b0", b'{"a": 1}', "x.nii.gz", b"\x1f\x8b\r\n\x00")
    message = BytesParser().parsebytes(b"Content-Type: multipart/form-data; boundary=b0\r\n\r\n" + body)
    params, file = message.get_payload()
    assert json.loads(params.get_payload()) == {"a": 1}
    assert file.get_filename() == "x.nii.gz" and file.get_payload(decode=True) == b"\x1f\x8b\r\n\x00"
