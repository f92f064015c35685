"""What the pages tell of a pair, and that they go on when asked for more meanwhile: their scripts, without browser."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from clinfuse_serve.backend import Gathered, LocalBackend
from clinfuse_serve.schemas import ExampleRow
from clinfuse_serve.study import Arm, Study
from page import run_page
from posting import Pair, Start

from clinfuse.case import Case

FUSE = """
const { state, panels } = await open("./viewer.js", url);
$("threshold").value = "50";
await until(() => $("preset").children.length > 0);
happens("load", "click");
await until(() => /^Fused in/.test($("status").textContent) && !state.busy);
"""
TOLD = """
return { findings: $("findings").children.map((row) => `${row.className}: ${row.textContent}`),
  hidden: $("findings").hidden, place: $("read-place").textContent, flagged: $("flagged").textContent,
  titles: Object.values(panels.shown).map((row) => row.title) };
"""


def unstated(source: Path, target: Path) -> Path:
    """The image without an orientation in its header."""
    image = nib.load(source)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, target)
    return target


def test_the_page_lists_what_was_noticed(local_service: Start, nifti_pair: Pair, tmp_path: Path) -> None:
    bare = {role: unstated(path, tmp_path / f"{role}.nii.gz") for role, path in nifti_pair.items()}
    told = run_page(tmp_path, FUSE + TOLD, local_service(), bare)
    assert (
        not told["hidden"]
        and (
            "warn: the image's orientation is not stated; expected an sform or qform in the header; found neither; "
            "to do: check left and right on the contact sheet"
        )
        in told["findings"]
    )
    assert "assumed" not in told["place"] + told["flagged"] and " ml at 0.50" in told["flagged"]


def test_millimetres_of_pictures_are_told_as_assumed(
    local_service: Start, png_pair: Pair, tmp_path: Path
) -> None:
    told = run_page(tmp_path, FUSE + TOLD, local_service(), png_pair)
    assert told["place"].endswith(" mm (spacing assumed)") and " ml (spacing assumed) at" in told["flagged"]


class SlowVolumes(LocalBackend):
    """Whole volumes take a second longer."""

    async def sample(self, held: Case, orders: Any, members: Any, deadline_s: float, tell: Any) -> Gathered:
        if orders[0].slab is None:
            await asyncio.sleep(1)
        return await super().sample(held, orders, members, deadline_s, tell)


def test_a_slider_that_moves_before_the_compared_volume_is_there(
    local_service: Start, nifti_pair: Pair, tmp_path: Path
) -> None:
    script = """
    happens("compare", "change", "stroke");
    await until(() => state.busy);
    happens("priority", "input", "100");
    await until(() => /whole follows/.test($("status").textContent));
    await until(() => !state.busy && !/whole follows/.test($("status").textContent));
    const { compared } = state.images;
    return { status: $("status").textContent, kind: $("status").className, shown: Object.keys(panels.shown),
      size: [...compared.hdr.dims.slice(1, 4)] };
    """
    told = run_page(tmp_path, FUSE + script, local_service(backend=SlowVolumes), nifti_pair)
    assert told["status"].startswith("Fused in") and told["kind"] == ""
    assert told["size"] == [28, 32, 12] and told["shown"][-1] == "compared"


class OnePet:
    """The tiny case, as if its companion were a PET that came as pictures."""

    def __init__(self, case: Case) -> None:
        attrs = {"source_geometry": {"kind": "png"}}
        chroma = np.zeros((2, *case.shape), np.float32)
        self.made = replace(case, modalities=("MR", "PET"), chroma=chroma, attrs=attrs)

    def names(self) -> list[str]:
        return ["one"]

    def rows(self) -> list[ExampleRow]:
        return [ExampleRow(id="one", title="one", simulated=False)]

    def case(self, name: str) -> Case:
        return self.made


def test_a_reader_is_told_what_the_companion_is(
    local_service: Start, tiny_case: Case, tmp_path: Path
) -> None:
    arms = (Arm(name="A", method="mean"), Arm(name="B", method="max"))
    study = Study(title="t", results=str(tmp_path / "results"), arms=arms, questions=("Borders",))
    script = """
    const { state, panels } = await open("./study.js", url);
    happens("begin", "submit");
    await until(() => $("status").textContent === "Picture 1 of 2.");
    return { titles: Object.values(panels.shown).map((row) => row.title), assumed: state.assumed };
    """
    url = local_service(examples=OnePet(tiny_case), study=study)
    told = run_page(tmp_path, '$("reader").value = "r1";' + script, url)
    assert told == {"titles": ["MRI", "PET", "Fused image"], "assumed": True}
