"""What requests and replies hold: the pydantic models behind the OpenAPI contract."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clinfuse.presets import RANGES, Preset

Output = Literal["image", "bundle", "json", "stream"]
MapName = Literal["fused", "uncertainty", "interval"]
Format = Literal["auto", "nifti", "png", "dicom"]
Grid = Literal["anatomy", "ras"]
CompanionKind = Literal["ct", "spect", "pet"]
MAX_SEED = 2**31 - 1


def _bounded(name: str, symbol: str) -> Any:
    low, high = RANGES[name]
    return Field(default=None, ge=low, le=high, description=symbol)


class Weights(BaseModel):
    """Explicit values that replace the preset's; what is left out stays as in the preset."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    alpha: float | None = _bounded("alpha", "α of Eq. 2: brain like MRI")
    beta: float | None = _bounded("beta", "β of Eq. 2: bone like CT")
    gamma: float | None = _bounded("gamma", "γ of Eq. 2: lesion border")
    lambda_dice: float | None = _bounded("lambda_dice", "λ₁ of Eq. 2")
    lambda_nsd: float | None = _bounded("lambda_nsd", "λ₂ of Eq. 2")
    lambda_hd: float | None = _bounded("lambda_hd", "λ₃ of Eq. 2")
    tau_mm: float | None = _bounded("tau_mm", "border tolerance τ in mm")
    eta: float | None = _bounded("eta", "η of Eq. 1: strength of ROI guidance")
    eta_u: float | None = _bounded("eta_u", "η_u of Eq. 1: strength of uncertainty guidance")
    kappa: float | None = _bounded("kappa", "κ of Eq. 4: slope of the modulation")

    def given(self) -> dict[str, float]:
        """Only the values that were given."""
        return self.model_dump(exclude_none=True)


class FuseParams(BaseModel):
    """The JSON in the form field `params` of POST /v1/fuse."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    companion_kind: CompanionKind | None = Field(
        None,
        description="what the companion is (default: told from its values); a case or an example must be of that kind",
    )
    preset: str = Field("balanced", max_length=64, description="name of a preset")
    weights: Weights = Field(default_factory=Weights, description="values that replace the preset's")
    steps: int | None = Field(None, ge=1, le=1000, description="sampler steps; default: the model's own")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="same seed, same image")
    members: int | None = Field(None, ge=1, le=64, description="members to ask; default: all")
    samples: int = Field(1, ge=1, le=16, description="samples per member")
    jitters: int = Field(0, ge=0, le=16, description="registration jitters per sample")
    guided: bool | None = Field(None, description="gradient guidance; default: teacher yes, student no")
    output: Output = Field(
        "image",
        description="one image, a zip bundle, facts as JSON, or the bundle after parts that tell the progress",
    )
    image: MapName = Field("fused", description="which map `output=image` returns")
    format: Format = Field("auto", description="auto: as the anatomy image came in")
    inputs: bool = Field(False, description="bundle: also both images as the model saw them")
    grid: Grid = Field("anatomy", description="lie as the anatomy image's file, or on the RAS+ grid")
    compress: bool = Field(True, description="NIfTI as .nii.gz (else .nii)")
    case: str | None = Field(None, max_length=64, description="token of a case sent before (X-Clinfuse-Case)")
    example: str | None = Field(None, max_length=64, description="one of GET /v1/examples instead of files")
    slab: tuple[int, int] | None = Field(
        None, description="only the axial slices [start, stop) of the RAS+ grid, answered on that grid"
    )
    deadline_s: float | None = Field(
        None, gt=0, le=86_400, description="answer by then, with who is there; 503 if nobody is"
    )


class PresetBody(BaseModel):
    """A preset's values, for PUT /v1/presets/{name}; what is left out takes the default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    description: str = Field(Preset.description, max_length=400)
    alpha: float = Preset.alpha
    beta: float = Preset.beta
    gamma: float = Preset.gamma
    lambda_dice: float = Preset.lambda_dice
    lambda_nsd: float = Preset.lambda_nsd
    lambda_hd: float = Preset.lambda_hd
    tau_mm: float = Preset.tau_mm
    eta: float = Preset.eta
    eta_u: float = Preset.eta_u
    kappa: float = Preset.kappa
    steps: int = Preset.steps

    def preset(self, name: str) -> Preset:
        """The checked preset of that name; ConfigError with the range if a value is impossible."""
        return Preset(name=name, **self.model_dump())


class MapStatistics(BaseModel):
    """One map in numbers, so that a JSON reply says something without voxels."""

    mean: float
    p05: float
    p50: float
    p95: float
    maximum: float


class FuseReply(BaseModel):
    """Reply of `output=json`."""

    case: str = Field(description="token: send it as params.case to fuse the same pair again")
    shape: tuple[int, int, int] = Field(description="(D, H, W) voxels of the RAS+ grid")
    members_asked: int
    members_used: int
    missing: list[int] = Field(description="members that did not answer")
    degraded: bool = Field(description="fewer members answered than were asked")
    maps: dict[str, MapStatistics]
    info: dict[str, Any] = Field(description="the JSON sidecar of the fused image")
    seconds: dict[str, float] = Field(description="time per phase")
    research_use: str


class PresetRow(BaseModel):
    """One preset with its sentence for a clinician."""

    model_config = ConfigDict(extra="allow")
    name: str
    description: str


class ModelRow(BaseModel):
    """The model that is served."""

    name: str
    kind: str
    model_hash: str
    members: int
    members_up: int
    calibrated: bool
    metadata: dict[str, Any]


class ExampleRow(BaseModel):
    """One case that the service offers for trying out."""

    id: str
    title: str = Field(description="for people")
    simulated: bool


class Health(BaseModel):
    """Whether the service can answer, and with how many members."""

    status: Literal["ok", "degraded", "down"]
    members: int
    members_up: int
    missing: list[int]
    version: str
    research_use: str
