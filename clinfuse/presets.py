"""Presets: named clinical priorities from a table; impossible values are refused (proposal, Section 3.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from clinfuse.errors import ConfigError
from clinfuse.ranges import require_ranges

RANGES: dict[str, tuple[float, float]] = {
    "alpha": (0, 10),
    "beta": (0, 10),
    "gamma": (0, 10),
    "lambda_dice": (0, 10),
    "lambda_nsd": (0, 10),
    "lambda_hd": (0, 10),
    "tau_mm": (0.1, 20),
    "eta": (0, 100),
    "eta_u": (0, 100),
    "kappa": (0, 50),
    "steps": (1, 1000),
}
VECTOR_SIZE = 6


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One clinical priority: the symbols of Eq. 2, Eq. 1 and Eq. 4 with their values.

    Attributes:
        alpha, beta, gamma: weights of brain, bone and lesion in L_ROI (α, β, γ of Eq. 2), 0 to 10.
        lambda_dice, lambda_nsd, lambda_hd: weights inside the lesion term (λ₁, λ₂, λ₃ of Eq. 2), 0 to 10.
        tau_mm: border tolerance τ in mm, 0.1 to 20.
        eta, eta_u: strengths of ROI and uncertainty guidance (η, η_u of Eq. 1) per step of 10 reverse steps, 0 to 100;
            each of N steps takes 10/N of them.
        kappa: slope κ of the modulation (Eq. 4), 0 to 50; 0 is the uniform strength η/2.
        steps: reverse steps of the teacher, 1 to 1000.

    Raises:
        ConfigError: a value outside its range, or α = β = γ = 0.
    """

    name: str
    description: str = ""
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    lambda_dice: float = 1.0
    lambda_nsd: float = 1.0
    lambda_hd: float = 0.5
    tau_mm: float = 2.0
    eta: float = 0.003
    eta_u: float = 0.01
    kappa: float = 4.0
    steps: int = 50

    def __post_init__(self) -> None:
        what, todo = f"preset {self.name!r}", "correct the value in the preset"
        require_ranges(what, self, RANGES, todo=todo)
        require_ranges(what, self, {"steps": RANGES["steps"]}, whole=True, todo=todo)
        if self.alpha + self.beta + self.gamma == 0:
            raise ConfigError(
                f"preset {self.name!r}: no region counts",
                expected="alpha + beta + gamma > 0",
                found="alpha = beta = gamma = 0",
            )

    @property
    def vector(self) -> tuple[float, ...]:
        """The denoiser's conditioning: (α, β, γ) and (λ₁, λ₂, λ₃), each scaled to sum to 1 (6 floats)."""
        rois = (self.alpha, self.beta, self.gamma)
        lambdas = (self.lambda_dice, self.lambda_nsd, self.lambda_hd)
        total = sum(lambdas) or 1.0
        return (*(v / sum(rois) for v in rois), *(v / total for v in lambdas))

    def changed(self, **values: Any) -> Preset:
        """The same preset with some values changed, all but its name; checked anew."""
        known = {*RANGES, "description"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                "unknown preset value", expected=f"one of {sorted(known)}", found=", ".join(unknown)
            )
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values, name included."""
        return asdict(self)


def load_presets(path: str | Path | None = None) -> dict[str, Preset]:
    """The built-in presets, with those of a user's YAML file added or replacing them.

    Raises:
        ConfigError: unreadable file, unknown key, or impossible value (with the range).
    """
    text = resources.files("clinfuse").joinpath("presets.yaml").read_text(encoding="utf-8")
    presets = parse_presets(text)
    if path is not None:
        presets.update(parse_presets(_read(Path(path))))
    return presets


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "presets file cannot be read", expected="a YAML file in UTF-8", found=type(error).__name__
        ) from error


def parse_presets(text: str) -> dict[str, Preset]:
    """Presets from YAML text: a mapping of name to values.

    Raises:
        ConfigError: no such mapping, unknown key (a row's own "name" too: its key is its name), or impossible value.
    """
    try:
        table = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError("presets file is not YAML", found=str(error).splitlines()[0]) from error
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise ConfigError("presets file has the wrong form", expected="a mapping name: {alpha: …}")
    return {
        str(name): Preset(name=str(name)).changed(**{str(k): v for k, v in row.items()})
        for name, row in table.items()
    }


def dump_presets(presets: dict[str, Preset]) -> str:
    """YAML text that `parse_presets` reads back to the same presets."""
    rows = {name: {k: v for k, v in p.as_dict().items() if k != "name"} for name, p in presets.items()}
    return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True)


def find_preset(presets: dict[str, Preset], name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in presets:
        raise ConfigError("no such preset", expected=f"one of {', '.join(sorted(presets))}", found=repr(name))
    return presets[name]
