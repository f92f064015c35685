"""`clinfuse fuse`: one pair of images to a fused image, here or by a service; files come out alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.folders import check_writable
from clinfuse.outputs import nifti_bytes, spacing_assumed, write_fused
from clinfuse.presets import load_presets

if TYPE_CHECKING:
    from clinfuse.case import Case

ROIS = ("brain", "bone", "lesion")


@dataclass(frozen=True, kw_only=True)
class FuseJob:
    """What to fuse and how.

    Attributes:
        anatomy, companion: NIfTI file, PNG slice or DICOM folder each.
        out: folder for the results.
        masks: "brain", "bone", "lesion" → file.
        preset: name.
        presets_file: YAML file with presets of one's own, as `clinfuse pareto --export` writes.
        weights: values that replace the preset's.
        steps, seed, members, samples, jitters: as in `FusionPipeline`.
        image_format: "auto" (PNG for a PNG slice), "nifti", "png" or "dicom".
        case_id: pseudonym for the file names; default "case".
        companion_kind: "ct", "spect" or "pet"; None tells it from the values.
        register: "none", "rigid" or "affine": move the companion onto the anatomy image first.
        window: as in `FusionPipeline`.
        guided: guide a student, too.
        precision: of the networks, as in `FusionPipeline`.
    """

    anatomy: Path
    companion: Path
    out: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    preset: str = "balanced"
    presets_file: Path | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    seed: int = 0
    members: int | None = None
    samples: int = 1
    jitters: int = 0
    image_format: str = "auto"
    case_id: str = "case"
    companion_kind: str | None = None
    register: str = "none"
    window: int | None = None
    guided: bool = False
    precision: str = "float32"


def released_model() -> Path:
    """The model that comes with the package.

    Raises:
        ModelFolderError: this installation has none.
    """
    folder = Path(str(resources.files("clinfuse").joinpath("released")))
    if not (folder / "model_index.json").is_file():
        raise ModelFolderError(
            "this installation has no released model",
            expected="--model FOLDER or --url URL",
            found="neither",
            todo="train one (`clinfuse demo` makes a small one), or give the URL of a service",
        )
    return folder


def fuse_here(job: FuseJob, model: str | Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Fuse in this process.

    Returns:
        files (key → path), and the facts of the sidecar.

    Raises:
        InputError, ModelFolderError, ConfigError: the pair, the model or the preset cannot be used.
    """
    from clinfuse_prep.config import PrepConfig
    from clinfuse_prep.geometry import to_source_grid
    from clinfuse_prep.prepare import prepare_pair

    from clinfuse.alignment import aligned
    from clinfuse.pipeline import FusionPipeline

    check_writable(job.out)
    pipeline = FusionPipeline.from_pretrained(
        model or released_model(), device=device, precision=job.precision
    )
    own = load_presets(job.presets_file) if job.presets_file else {}
    pipeline = replace(pipeline, window=job.window, presets={**pipeline.presets, **own})
    preset = pipeline.resolve_preset(job.preset).changed(**job.weights)
    case = prepare_pair(
        job.anatomy,
        job.companion,
        brain=job.masks.get("brain"),
        bone=job.masks.get("bone"),
        lesion=job.masks.get("lesion"),
        config=PrepConfig(register=job.register),
        case_id=job.case_id,
        modalities=modalities_of(job.companion_kind),
    )
    case = aligned(case)
    result = pipeline(
        case,
        preset,
        steps=job.steps,
        seed=job.seed,
        members=job.members,
        samples=job.samples,
        jitters=job.jitters,
        guided=job.guided or None,
    )
    image_format: Any = job.image_format
    if image_format == "auto":
        image_format = "png" if came_as_picture(case) else "nifti"
    files = write_fused(result, case, job.out, to_source_grid, image_format=image_format)
    return {"files": files, "info": result.info, "findings": case.attrs.get("findings", [])}


def modalities_of(companion_kind: str | None) -> tuple[str, str] | None:
    """Modalities for `prepare_pair` of "ct", "spect" or "pet"; None tells the companion's from its values."""
    return None if companion_kind is None else ("MR", companion_kind.upper())


def came_as_picture(case: Case) -> bool:
    """Whether the anatomy image was a single picture slice."""
    return spacing_assumed(case) and case.shape[0] == 1


def fuse_there(
    job: FuseJob, url: str, token: str | None = None, authority: str | None = None
) -> dict[str, Any]:
    """Fuse by a service; DICOM folders are turned into NIfTI here, so no header of theirs leaves this machine.

    Args:
        authority: file with the certificate that vouches for an https service; default the system's authorities.

    Raises:
        ConfigError: asks for what only `fuse_here` does. InputError: a file cannot be read.
        ServiceError: the service refused or is not there.
    """
    from clinfuse_serve.client import Client

    check_writable(job.out)
    if job.register != "none":
        raise ConfigError("a service does not register", expected="--register none with --url")
    if job.window is not None:
        raise ConfigError("a service has its own memory", expected="no --window with --url")
    if job.precision != FuseJob.precision:
        raise ConfigError("a service has its own precision", expected="no --precision with --url")
    if job.presets_file is not None:
        raise ConfigError(
            "a service has presets of its own",
            expected="no --presets-file with --url",
            todo="send the preset to the service: PUT /v1/presets/NAME",
        )
    if job.case_id != FuseJob.case_id:
        raise ConfigError("a service gives pseudonyms of its own", expected="no --case-id with --url")
    sources = {"anatomy": job.anatomy, "companion": job.companion, **job.masks}
    sent = {role: sendable(path, role) for role, path in sources.items()}
    masks = {role: data for role, data in sent.items() if role in ROIS}
    token = token or os.environ.get("CLINFUSE_TOKEN")
    with Client(url, token, verify=authority or True) as client:
        reply = client.fuse(
            sent["anatomy"],
            sent["companion"],
            masks=masks,
            companion_kind=job.companion_kind,
            preset=job.preset,
            weights=dict(job.weights),
            steps=job.steps,
            seed=job.seed,
            members=job.members,
            samples=job.samples,
            jitters=job.jitters,
            guided=job.guided or None,
            format=job.image_format,
        )
    paths = reply.save(job.out)
    files = {key: paths[name] for key, name in reply.info["Files"].items() if name in paths}
    files["sidecar"] = next(path for name, path in paths.items() if name.endswith(".json"))
    return {"files": files, "info": reply.info, "findings": reply.info.get("findings", [])}


def sendable(path: Path, role: str) -> bytes:
    """A file's bytes; a DICOM folder as one NIfTI with the same voxels and geometry, and nothing else."""
    if path.is_file() and path.name.lower().endswith((".png", ".nii", ".nii.gz")):
        return path.read_bytes()
    from clinfuse_prep.config import PrepConfig
    from clinfuse_prep.read import read_image

    image = read_image(path, role=role, case=None, config=PrepConfig())
    return nifti_bytes(image.to_source(image.volume), image.source_affine)
