"""What an aggregator knows of the model: identity, presets, calibration; read without loading any network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.case import Case
from clinfuse.combine import FusionResult, MemberSample, ModelFacts, combine_samples
from clinfuse.errors import ModelFolderError
from clinfuse.method.error_head import FILE as ERROR_HEAD
from clinfuse.method.error_head import ErrorHead
from clinfuse.presets import Preset, parse_presets

if TYPE_CHECKING:
    from clinfuse.method.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Facts of one model folder.

    Attributes:
        name: of the folder, shown to clients.
        kind: "teacher" or "student".
        spatial_dims: 2 (slices) or 3 (volumes).
        members: how many the folder holds.
        model_hash: of the weights.
        presets: by name.
        error_head, calibration: or None.
        metadata: facts for the model row.
    """

    name: str
    kind: str
    spatial_dims: int
    members: int
    model_hash: str
    presets: dict[str, Preset]
    error_head: ErrorHead | None = None
    calibration: Calibration | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def combine(
        self, samples: Sequence[MemberSample], case: Case, preset: Preset, *, asked: int, seed: int
    ) -> FusionResult:
        """As `FusionPipeline.combine`."""
        facts = ModelFacts(
            kind=self.kind,
            model_hash=self.model_hash,
            error_head=self.error_head,
            calibration=self.calibration,
        )
        return combine_samples(samples, case, preset, facts, asked=asked, seed=seed)


def read_model(folder: str | Path) -> ServedModel:
    """The facts of a model folder; weights are left to the members, which check them.

    Raises:
        ModelFolderError: no model there, or presets, error head or calibration differ from their recorded hash.
    """
    path = Path(folder)
    index, metadata = _json(path, "model_index.json"), _json(path, "metadata.json")
    recorded = metadata.get("files", {})
    error_head, calibration = None, None
    if (path / ERROR_HEAD).is_file():
        error_head = ErrorHead.from_bytes(_checked(path, ERROR_HEAD, recorded))
    if (path / "calibration.json").is_file():
        from clinfuse.method.calibration import Calibration

        calibration = Calibration.from_dict(json.loads(_checked(path, "calibration.json", recorded)))
    try:
        return ServedModel(
            name=path.name,
            kind=index["kind"],
            spatial_dims=int(_json(path / index["members"][0], "config.json")["spatial_dims"]),
            members=len(index["members"]),
            model_hash=metadata["model_hash"],
            presets=parse_presets(_checked(path, "presets.yaml", recorded).decode("utf-8")),
            error_head=error_head,
            calibration=calibration,
            metadata=metadata.get("facts", {}),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ModelFolderError("not a clinfuse model", found=f"no {error}", todo="export it again") from error


def _checked(folder: Path, name: str, recorded: dict[str, str]) -> bytes:
    data = (folder / name).read_bytes() if (folder / name).is_file() else b""
    if hashlib.sha256(data).hexdigest() != recorded.get(name):
        raise ModelFolderError(
            "the model folder is damaged",
            expected=f"{name} as it was saved",
            found="another file, or none",
            todo="copy or export the model again",
        )
    return data


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            "no model here",
            expected=f"a folder with {name}",
            found=type(error).__name__,
            todo="give the model folder of a run",
        ) from error
    if not isinstance(found, dict):
        raise ModelFolderError("not a clinfuse model", expected="a JSON object", found=name)
    return found
