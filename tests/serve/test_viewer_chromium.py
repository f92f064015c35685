"""The page in a real headless browser: load a pair, change the preset, see the picture change, no console error."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from chromium import NO_WEBGL, Browser, find_browser
from posting import Pair, Start


def opened(browser: Browser, url: str) -> None:
    browser.call("Page.navigate", url=url)
    browser.wait("document.getElementById('preset')?.options.length >= 7")


def pixels(browser: Browser, key: str) -> str:
    """What a panel shows, as a data URL."""
    return str(
        browser.run(
            f"(() => {{ const p = clinfuse.panels.all.get('{key}'); p.nv.drawScene();"
            " return p.canvas.toDataURL(); })()"
        )
    )


def colours(browser: Browser, key: str) -> int:
    """How many different pixels a panel shows: 1 if it is blank."""
    return int(
        browser.run(
            f"(() => {{ const {{ nv }} = clinfuse.panels.all.get('{key}'); nv.drawScene(); const {{ gl }} = nv;"
            " const p = new Uint8Array(gl.drawingBufferWidth * gl.drawingBufferHeight * 4);"
            " gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, p);"
            " return new Set(new Uint32Array(p.buffer)).size; })()"
        )
    )


def fused(browser: Browser) -> None:
    browser.wait("/^Fused in/.test(document.getElementById('status').textContent) && !clinfuse.state.busy")


def change(browser: Browser, name: str, value: object, event: str = "input") -> None:
    browser.run(
        f"document.getElementById('{name}').value = '{value}';"
        f"document.getElementById('{name}').dispatchEvent(new Event('{event}'))"
    )


def text(browser: Browser, name: str) -> str:
    return str(browser.run(f"document.getElementById('{name}').textContent"))


def picture(browser: Browser, name: str) -> None:
    """A screenshot to look at, if a folder for them is named."""
    if folder := os.environ.get("CLINFUSE_TEST_PICTURES"):
        browser.picture(Path(folder) / f"{name}.png")


def test_a_clinician_fuses_a_pair(browser: Browser, local_service: Start, nifti_pair: Pair) -> None:
    opened(browser, local_service())
    assert "Research use only" in browser.run("document.body.innerText")
    browser.choose_files(nifti_pair)
    browser.run("document.getElementById('load').click()")
    fused(browser)
    assert browser.run("document.querySelectorAll('#images canvas').length") == 4
    assert browser.run("document.getElementById('simulated').hidden")
    assert "3 of 3 members" in text(browser, "status")
    first, mri = pixels(browser, "fused"), pixels(browser, "anatomy")
    assert min(colours(browser, key) for key in ("anatomy", "companion", "fused", "uncertainty")) > 20
    assert first != mri and pixels(browser, "uncertainty") != first
    change(browser, "priority", 100)
    browser.wait("clinfuse.state.info.weights.beta === 4 && !clinfuse.state.busy")
    assert pixels(browser, "fused") != first and pixels(browser, "anatomy") == mri
    browser.wait(
        "document.getElementById('status').textContent.indexOf('whole follows') < 0 && !clinfuse.state.busy"
    )
    compare(browser)
    keyboard(browser)
    overlay(browser)
    views(browser)
    picture(browser, "viewer_tiny")
    assert browser.errors == []


def compare(browser: Browser) -> None:
    """A second preset beside the first, under the same cross."""
    change(browser, "compare", "stroke", "change")
    browser.wait("document.querySelectorAll('#images canvas').length === 5 && !clinfuse.state.busy")
    assert "Fused: stroke" in browser.run("document.getElementById('images').innerText")
    assert pixels(browser, "compared") != pixels(browser, "fused")
    browser.run(
        "clinfuse.panels.goTo([...clinfuse.state.images.fused.vox2mm ? clinfuse.state.mm : clinfuse.state.mm])"
    )


def keyboard(browser: Browser) -> None:
    """Arrows move the cross in every panel, and a screen reader is told."""
    before = pixels(browser, "companion")
    browser.run("document.querySelector('#images canvas').focus()")
    browser.key("PageUp")
    browser.key("PageUp")
    assert pixels(browser, "companion") != before
    browser.wait("/cross at/.test(document.querySelector('#images canvas').getAttribute('aria-label'))")
    browser.wait("/HU, fused/.test(document.getElementById('spoken').textContent)")
    assert "HU" in text(browser, "read-ct") and "mm" in text(browser, "read-place")


def cyan(browser: Browser) -> int:
    """How many pixels of the uncertainty panel are flagged."""
    return int(
        browser.run(
            "(() => { const { nv } = clinfuse.panels.all.get('uncertainty'); nv.drawScene(); const { gl } = nv;"
            " const p = new Uint8Array(gl.drawingBufferWidth * gl.drawingBufferHeight * 4); let n = 0;"
            " gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, p);"
            " for (let i = 0; i < p.length; i += 4) if (p[i + 1] > p[i] + 60 && p[i + 2] > p[i] + 80) n += 1;"
            " return n; })()"
        )
    )


def overlay(browser: Browser) -> None:
    shown = pixels(browser, "uncertainty")
    change(browser, "opacity", 0)
    assert pixels(browser, "uncertainty") != shown
    change(browser, "opacity", 70)
    assert pixels(browser, "uncertainty") == shown
    change(browser, "threshold", 5)
    assert "ml at 0.05 or above" in text(browser, "flagged")
    everywhere = cyan(browser)
    level = 100 * browser.run("[...clinfuse.state.images.uncertainty.img].sort((a, b) => a - b).at(-400)")
    change(browser, "threshold", 5 * round(level / 5))
    assert 0 < cyan(browser) < everywhere / 2


def views(browser: Browser) -> None:
    seen = set()
    for view in ("axial", "coronal", "sagittal", "render", "quad", "planes"):
        change(browser, "view", view, "change")
        seen.add(pixels(browser, "fused"))
    assert len(seen) == 6


def test_page_and_nifti_agree_on_where_things_are(
    browser: Browser, local_service: Start, nifti_pair: Pair
) -> None:
    """The volume that the page shows, read back from it, is the RAS+ case of the L-A-S file."""
    from clinfuse_prep.prepare import prepare_pair

    opened(browser, local_service())
    browser.choose_files(nifti_pair)
    browser.run("document.getElementById('load').click()")
    fused(browser)
    size = browser.run("[...clinfuse.state.images.anatomy.hdr.dims.slice(1, 4)]")
    shown = np.array(browser.run("[...clinfuse.state.images.anatomy.img]"), np.float32).reshape(size[::-1])
    masks = {roi: nifti_pair[roi] for roi in ("brain", "bone", "lesion")}
    case = prepare_pair(nifti_pair["anatomy"], nifti_pair["companion"], **masks)
    np.testing.assert_allclose(shown, case.anatomy, atol=1e-6)
    place = (case.affine @ [3, 20, 5, 1])[:3].tolist()
    browser.run(f"clinfuse.panels.goTo({place})")
    assert browser.run(f"[...clinfuse.state.images.anatomy.mm2vox({place})]") == [3, 20, 5]
    hounsfield = round(-100 + 1800 * float(case.companion[5, 20, 3]))
    assert text(browser, "read-ct") == f"{hounsfield} HU"


def test_a_dropped_pair_is_sorted_by_name(browser: Browser, local_service: Start, nifti_pair: Pair) -> None:
    opened(browser, local_service())
    files = ", ".join(
        f"new File([Uint8Array.from({list(nifti_pair[role].read_bytes())})], '{name}')"
        for role, name in (("companion", "head_ct.nii.gz"), ("anatomy", "head_t1.nii.gz"))
    )
    browser.run(
        f"(() => {{ const data = new DataTransfer(); for (const file of [{files}]) data.items.add(file);"
        " document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true })); })()"
    )
    fused(browser)
    assert "HU" in text(browser, "read-ct") and browser.errors == []


def test_the_page_is_told_what_the_companion_is(
    browser: Browser, local_service: Start, nifti_pair: Pair
) -> None:
    opened(browser, local_service())
    browser.choose_files(nifti_pair)
    change(browser, "kind", "pet", "change")
    browser.run("document.getElementById('load').click()")
    fused(browser)
    assert "PET" in browser.run("document.getElementById('images').innerText")
    change(browser, "priority", 100)
    browser.wait("clinfuse.state.info.weights.beta === 4 && !clinfuse.state.busy")
    assert browser.run("clinfuse.state.info.modalities") == ["MR", "PET"], "of the kept case, too"
    assert browser.errors == []


def test_a_refusal_is_told_on_the_page(
    browser: Browser, local_service: Start, nifti_pair: Pair, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.nii"
    wrong.write_bytes(b"not an image at all, only words")
    opened(browser, local_service())
    browser.choose_files({"anatomy": nifti_pair["anatomy"], "companion": wrong})
    browser.run("document.getElementById('load').click()")
    browser.wait("document.getElementById('status').className === 'bad'")
    told = text(browser, "status")
    assert "companion image is not of a kind" in told and "expected NIfTI" in told


def arrived(folder: Path) -> Path:
    """The one file that was downloaded, complete."""
    for _ in range(300):
        files = list(folder.iterdir())
        if files and not any(file.suffix == ".crdownload" or file.name.startswith(".") for file in files):
            assert len(files) == 1
            return files[0]
        time.sleep(0.1)
    raise AssertionError("no file arrived")


def test_downloads_arrive_and_open(
    browser: Browser, local_service: Start, nifti_pair: Pair, tmp_path: Path
) -> None:
    opened(browser, local_service())
    browser.choose_files(nifti_pair)
    browser.run("document.getElementById('load').click()")
    fused(browser)
    for kind in ("nifti", "dicom"):
        folder = tmp_path / kind
        browser.downloads_to(folder)
        browser.run(f"document.getElementById('download-{kind}').click()")
        browser.wait("/^Downloaded/.test(document.getElementById('status').textContent)")
        with zipfile.ZipFile(arrived(folder)) as archive:
            images = [name for name in archive.namelist() if not name.endswith(".json")]
            archive.extractall(folder)
        browser.run("document.getElementById('status').textContent = ''")
        path = folder / next(name for name in images if "_desc-fused_" in name)
        if kind == "nifti":
            source = nib.load(nifti_pair["anatomy"])
            assert (
                nib.load(path).shape == source.shape and len(images) >= 4
            )  # both inputs, fused, uncertainty
            np.testing.assert_array_equal(nib.load(path).affine, source.affine)
        else:
            dicom = pydicom.dcmread(path)
            assert (dicom.Rows, dicom.Columns, int(dicom.NumberOfFrames)) == (32, 28, 12)
            assert "research use only" in dicom.SeriesDescription
    assert browser.errors == []


def test_without_webgl_the_page_says_what_is_missing(local_service: Start, tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here")
    blind = Browser(program, tmp_path / "profile", NO_WEBGL)
    try:
        blind.call("Page.navigate", url=local_service())
        blind.wait("document.getElementById('status')?.className === 'bad'")
        told = text(blind, "status")
        picture(blind, "viewer_without_webgl")
    finally:
        blind.close()
    assert "WebGL 2" in told and "clinfuse fuse --url" in told
