"""What an aggregator knows of the model: identity, presets, calibration; read without loading any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.case import Case
from clinfuse.combine import FusionResult, MemberSample, ModelFacts, combine_samples
from clinfuse.errors import ModelFolderError
from clinfuse.method.error_head import ErrorHead
from clinfuse.model_files import model_files, read_json
from clinfuse.presets import Preset

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
        model_hash: of all that changes an answer.
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
    """The facts of a model folder, without its networks.

    Raises:
        ModelFolderError: no model there, or a file differs from its recorded hash.
    """
    files = model_files(Path(folder))
    try:
        places = files.index["members"]
        return ServedModel(
            name=files.path.name,
            kind=files.index["kind"],
            spatial_dims=int(read_json(files.file(f"{places[0]}/config.json"))["spatial_dims"]),
            members=len(places),
            model_hash=files.facts["model_hash"],
            presets=files.presets(),
            error_head=files.error_head(),
            calibration=files.calibration(),
            metadata=files.facts.get("facts", {}),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ModelFolderError("not a clinfuse model", found=f"no {error}", todo="export it again") from error
