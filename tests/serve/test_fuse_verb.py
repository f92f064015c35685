"""`clinfuse fuse`: NIfTI, PNG and DICOM in, the anatomy image's geometry out, here and by a service alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from clinfuse_platform.cli import main
from clinfuse_serve.fuse import released_model, sendable
from clinfuse_serve.served_model import read_model
from clinfuse_serve.verbs import FUSE, SERVE
from PIL import Image
from posting import Pair, Start
from scipy.ndimage import binary_erosion
from scipy.stats import spearmanr

from clinfuse.method.precision import TOLERANCE


def arguments(pair: Pair, out: Path, *more: str) -> list[str]:
    roles = [word for role, path in pair.items() for word in (f"--{role}", str(path))]
    return ["fuse", *roles, "--out", str(out), "--json", *more]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = main(words)
    text = capsys.readouterr()
    assert code == 0, text.err
    return dict(json.loads(text.out))


def test_volume_here_and_there_are_alike(
    nifti_pair: Pair,
    model_dir: Path,
    local_service: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--preset", "bone_tumor", "--seed", "3", "--set", "beta=4")
    here = run(arguments(nifti_pair, tmp_path / "here", "--model", str(model_dir), *more), capsys)
    there = run(arguments(nifti_pair, tmp_path / "there", "--url", local_service(), *more), capsys)
    source = nib.load(nifti_pair["anatomy"])
    images = {}
    for name, done in (("here", here), ("there", there)):
        assert done["result"] == done["files"]["fused"] and done["info"]["weights"]["beta"] == 4.0
        image = images[name] = nib.load(done["files"]["fused"])
        assert image.shape == source.shape and nib.aff2axcodes(image.affine) == ("L", "A", "S")
        np.testing.assert_array_equal(image.affine, source.affine)
        np.testing.assert_allclose(image.header.get_zooms(), source.header.get_zooms(), rtol=1e-6)
        assert json.loads(Path(done["files"]["sidecar"]).read_text())["IntendedUse"].startswith(
            "Research use only"
        )
        assert {p.name for p in (tmp_path / name).iterdir()} == {Path(p).name for p in done["files"].values()}
    np.testing.assert_allclose(*(np.asarray(i.dataobj) for i in images.values()), atol=1e-6)


def test_png_in_png_out_and_nifti_if_asked(
    png_pair: Pair, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(arguments(png_pair, tmp_path / "p", "--model", str(model_dir)), capsys)
    picture = Image.open(done["files"]["fused"])
    assert picture.size == Image.open(png_pair["anatomy"]).size and picture.mode == "L"
    done = run(arguments(png_pair, tmp_path / "n", "--model", str(model_dir), "--format", "nifti"), capsys)
    volume = np.asarray(nib.load(done["files"]["fused"]).dataobj)
    assert volume.shape == (80, 96, 1)
    np.testing.assert_allclose(np.asarray(picture) / 255, volume[:, :, 0].T, atol=0.5 / 255 + 1e-6)


def test_pseudo_colour_is_kept_here_and_there_alike(
    png_pair: Pair, model_dir: Path, local_service: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = np.asarray(Image.open(png_pair["companion"]).convert("L"))
    rgb = np.stack([grey, grey // 2, 60 * (grey > 20)], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "spect.png")
    pair = {**png_pair, "companion": tmp_path / "spect.png"}
    here = run(arguments(pair, tmp_path / "here", "--model", str(model_dir)), capsys)
    there = run(arguments(pair, tmp_path / "there", "--url", local_service()), capsys)
    shown = [np.asarray(Image.open(done["files"]["colour"])).astype(int) for done in (here, there)]
    assert shown[0].shape == rgb.shape and np.abs(shown[0] - shown[1]).max() <= 1
    luminance = shown[0] @ (0.299, 0.587, 0.114)
    fused = np.asarray(Image.open(here["files"]["fused"])).astype(float)
    inside = (shown[0].min(axis=2) > 0) & (shown[0].max(axis=2) < 255)
    assert inside.any() and np.abs(luminance - fused)[inside].max() <= 1.5


def test_a_preset_of_one_s_own(
    png_pair: Pair, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("mine: {alpha: 3, beta: 0.5, steps: 2}\n")
    words = ("--model", str(model_dir), "--preset", "mine", "--presets-file", str(file), "--set", "steps=3")
    done = run(arguments(png_pair, tmp_path / "p", *words), capsys)
    assert done["info"]["preset"] == "mine" and done["info"]["weights"]["alpha"] == 3


def test_bfloat16_is_told_and_differs_little(
    png_pair: Pair, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {}
    for precision in ("float32", "bfloat16"):
        words = ("--model", str(model_dir), "--format", "nifti", "--precision", precision)
        done = run(arguments(png_pair, tmp_path / precision, *words), capsys)
        sidecar = json.loads(Path(done["files"]["sidecar"]).read_text())
        assert sidecar["precision"] == done["info"]["precision"] == precision
        images[precision] = np.asarray(nib.load(done["files"]["fused"]).dataobj)
    assert 0 < np.abs(images["bfloat16"] - images["float32"]).max() <= TOLERANCE


def test_a_student_is_guided_if_asked_here_and_there_alike(
    png_pair: Pair, model_dir: Path, local_service: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--format", "nifti", "--set", "alpha=0", "--set", "eta=0.02")
    here, there = ("--model", str(model_dir)), ("--url", local_service())
    images = []
    for name, words in (("plain", here), ("guided", (*here, "--guided")), ("there", (*there, "--guided"))):
        done = run(arguments(png_pair, tmp_path / name, *more, *words), capsys)
        images.append(np.asarray(nib.load(done["files"]["fused"]).dataobj))
    plain, guided, served = images
    assert 1e-3 < np.abs(guided - plain).max() <= 1
    np.testing.assert_allclose(served, guided, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--case-id", "head7"), "pseudonyms of its own"),
        (("--register", "rigid"), "does not register"),
        (("--window", "8"), "its own memory"),
        (("--precision", "bfloat16"), "its own precision"),
        (("--set", "beta=99"), "weights.beta"),
    ],
)
def test_what_a_service_does_not_do_is_refused(
    png_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    assert main(arguments(png_pair, tmp_path, "--url", "http://127.0.0.1:9", *more)) == 2
    assert words in capsys.readouterr().err


def test_dicom_leaves_as_plain_nifti(data_root: Path) -> None:
    """Voxels and geometry of a real series, gantry tilt and all, and no word of its headers."""
    from clinfuse_prep.read import read_image

    folder = data_root / "headct_ge_dicom"
    if not folder.is_dir():
        pytest.skip("no DICOM series here")
    sent = nib.Nifti1Image.from_bytes(sendable(folder, "companion"))
    image = read_image(folder, role="companion")
    np.testing.assert_array_equal(np.asarray(sent.dataobj), image.to_source(image.volume))
    np.testing.assert_allclose(sent.affine, image.source_affine, atol=1e-3)
    assert b"Research use only" in sent.header["descrip"].tobytes()


def test_without_a_model_it_is_the_released_one(
    png_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(arguments(png_pair, tmp_path), capsys)
    assert done["info"]["model_hash"] == read_model(released_model()).model_hash


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--preset", "nonsense"), 2, "no such preset"),
        (("--set", "beta=99"), 2, "0 <= beta <= 10"),
        (("--set", "what"), 2, "KEY=VALUE"),
        (("--set", "beta=much"), 2, "0 <= beta <= 10"),
        (("--members", "9"), 2, "1 to 3"),
        (("--url", "http://127.0.0.1:9"), 2, "not allowed with"),
    ],
)
def test_wrong_use_is_told(
    nifti_pair: Pair,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    assert main(arguments(nifti_pair, tmp_path, "--model", str(model_dir), *more)) == code
    assert words in capsys.readouterr().err


def test_missing_file_and_foreign_model_fail(
    nifti_pair: Pair, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {**nifti_pair, "companion": tmp_path / "none.nii"}
    assert main(arguments(absent, tmp_path, "--model", str(model_dir))) == 1
    assert "companion image is missing" in capsys.readouterr().err
    assert main(arguments(nifti_pair, tmp_path, "--model", str(tmp_path))) == 1
    assert "no model here" in capsys.readouterr().err


def test_serve_refuses_to_open_up_before_ray_starts(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SERVE.needs_ray and not FUSE.needs_ray
    import argparse

    parser = argparse.ArgumentParser()
    SERVE.add_arguments(parser)
    from clinfuse.errors import ConfigError

    with pytest.raises(ConfigError, match="open to the network"):
        SERVE.run(parser.parse_args([str(model_dir), "--host", "0.0.0.0"]))


@pytest.mark.real
def test_real_slice_of_a_patient(
    data_root: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = data_root / "aanlib" / "MRI-CT"
    found = sorted(pairs.glob("case_*/MRI/*.png"))
    if not found:
        pytest.skip("no real slices here")
    mri = found[len(found) // 2]
    pair = {"anatomy": mri, "companion": mri.parent.parent / "CT" / mri.name}
    done = run(arguments(pair, tmp_path, "--model", str(model_dir)), capsys)
    assert np.asarray(Image.open(done["files"]["fused"])).shape == (256, 256)
    assert mri.stem not in json.dumps(done["info"]) + done["result"]


@pytest.mark.real
@pytest.mark.parametrize("companion", ["ct_hu", "spect"])
def test_real_volumes_of_different_orientation_meet_on_the_t1s_grid(
    data_root: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], companion: str
) -> None:
    folder = data_root / "templates_2mm"
    if not (folder / "t1.nii.gz").is_file():
        pytest.skip("no templates here")
    pair = {"anatomy": folder / "t1.nii.gz", "companion": folder / f"{companion}.nii.gz"}
    pair["brain"] = folder / "brainmask.nii.gz"
    done = run(arguments(pair, tmp_path, "--model", str(model_dir), "--members", "1", "--steps", "1"), capsys)
    source, fused = nib.load(pair["anatomy"]), nib.load(done["files"]["fused"])
    assert fused.shape == source.shape
    np.testing.assert_array_equal(fused.affine, source.affine)
    brain = np.asarray(nib.load(pair["brain"]).dataobj) > 0.5
    inside = binary_erosion(brain, iterations=4)  # away from the companion's bone
    differences = []
    for volume in (np.asarray(source.dataobj, float), np.asarray(fused.dataobj, float)):
        differences.append((volume - volume[::-1])[inside & inside[::-1]])
    agreement = spearmanr(*differences).statistic  # a mirrored answer has the opposite sign
    assert agreement > 0.1, "left and right are where the T1 has them"
