"""Methods of others: from an installed package, and from a folder of fused images in every form that is read."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from clinfuse.baselines import BASELINES, BUILT_IN, label_of
from clinfuse.baselines.registry import MethodTable
from clinfuse.case import Case
from clinfuse.errors import GeometryError, InputError
from clinfuse.presets import load_presets

PRESET = load_presets()["balanced"]
PLUGIN = """
import numpy as np

def fuse(anatomy, companion, masks, spacing):
    assert len(spacing) == 3
    return np.where(masks["bone"] > 0, companion, 0.75 * anatomy + 0.25 * companion)

def silent(anatomy, companion, masks, spacing):
    return None
"""


def test_entry_points_join_the_table(
    tiny_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blend_plugin.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "blend_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: blend-plugin\nVersion: 1.0\n", encoding="utf-8"
    )
    lines = "[clinfuse.methods]\nblend = blend_plugin:fuse\nsilent = blend_plugin:silent\n"
    (info / "entry_points.txt").write_text(lines, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    table = MethodTable()
    assert (
        "blend" in table and set(table) == {*BUILT_IN, "blend", "silent"} and len(table) == len(BUILT_IN) + 2
    )
    fused = table["blend"](tiny_case, PRESET)
    bone = tiny_case.bone > 0
    assert fused.dtype == np.float32 and np.array_equal(fused[bone], tiny_case.companion[bone])
    with pytest.raises(InputError, match="NoneType"):
        table["silent"](tiny_case, PRESET)


def test_unknown_names_are_unknown() -> None:
    assert "no such method" not in BASELINES and BASELINES.get("no such method") is None
    with pytest.raises(KeyError):
        BASELINES["no such method"]
    with pytest.raises(InputError, match="folder"):
        BASELINES["folder:/no/such/folder"]


def test_labels_never_show_a_path() -> None:
    assert label_of("max") == "max"
    assert label_of("cddfuse=/data/results of/cdd") == "cddfuse"
    assert label_of("folder:/data/results/emfusion") == "emfusion"


def write_nifti(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), path)


@pytest.mark.parametrize("form", ["npy", "nifti", "flipped nifti", "bids", "pictures"])
def test_every_form_gives_the_same_volume(form: str, tiny_case: Case, tmp_path: Path) -> None:
    greys = np.rint(tiny_case.anatomy * 255).astype(np.uint8)
    expected = greys.astype(np.float32) / 255
    if form == "npy":
        np.save(tmp_path / "tiny.npy", expected)
    elif form == "nifti":
        write_nifti(greys, tiny_case.affine, tmp_path / "tiny.nii.gz")
    elif form == "flipped nifti":
        affine = tiny_case.affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = (tiny_case.affine @ [tiny_case.shape[2] - 1, 0, 0, 1])[:3]
        write_nifti(expected[:, :, ::-1], affine, tmp_path / "tiny.nii")
    elif form == "bids":
        write_nifti(expected, tiny_case.affine, tmp_path / "sub-tiny_desc-fused_T1w.nii.gz")
    else:
        (tmp_path / "tiny").mkdir()
        for index, grey in enumerate(greys):
            Image.fromarray(grey[::-1, ::-1]).save(tmp_path / "tiny" / f"slice {index + 5}.png")
    fused = BASELINES[f"theirs={tmp_path}"](tiny_case, PRESET)
    assert np.allclose(fused, expected, atol=1e-6)


def test_single_picture(tiny_case: Case, tmp_path: Path) -> None:
    case = tiny_case.slices(5, 6)
    Image.fromarray(np.rint(case.anatomy[0, ::-1, ::-1] * 255).astype(np.uint8)).save(tmp_path / "tiny.png")
    assert np.allclose(BASELINES[f"folder:{tmp_path}"](case, PRESET), case.anatomy, atol=0.003)


def test_misfits_show_both_sides(tiny_case: Case, tmp_path: Path) -> None:
    method = BASELINES[f"theirs={tmp_path}"]
    with pytest.raises(InputError, match="case tiny: no fused image"):
        method(tiny_case, PRESET)
    np.save(tmp_path / "tiny.npy", tiny_case.anatomy[1:])
    with pytest.raises(GeometryError, match=r"case tiny.*\(12, 32, 28\).*\(11, 32, 28\)"):
        method(tiny_case, PRESET)
    np.save(tmp_path / "tiny.npy", tiny_case.anatomy * 255)
    with pytest.raises(InputError, match=r"case tiny.*\[0, 1\].*236"):
        method(tiny_case, PRESET)
    (tmp_path / "tiny.npy").unlink()
    moved = tiny_case.affine.copy()
    moved[0, 3] += 4
    write_nifti(tiny_case.anatomy, moved, tmp_path / "tiny.nii.gz")
    with pytest.raises(GeometryError, match=r"4\.00 mm apart"):
        method(tiny_case, PRESET)
