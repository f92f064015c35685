"""Everything a person can choose about preparing cases, validated when it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from clinfuse.errors import ConfigError

BRAIN_METHODS = ("auto", "ct", "mr", "deepbet", "totalsegmentator", "none")
REGISTRATIONS = ("none", "rigid", "affine")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class PrepConfig:
    """Choices of `clinfuse prep`.

    Attributes:
        spacing_mm: (D, H, W) of the common grid in mm; None keeps the anatomy image's own grid.
        ct_window: HU values that become 0 and 1.
        mr_percentiles: percentiles of the head's voxels that become 0 and 1 (also SPECT and PET).
        slice_spacing_mm: (D, H, W) mm assumed for stacks of PNG slices, which carry no spacing.
        register: "none" trusts the headers, "rigid" or "affine" moves the companion onto the anatomy image.
        brain: how an automatic brain mask is made; "auto" picks by modality.
        compare: check the CT's brain mask against one from the MR by deepbet, where that is installed.
        n4: correct the MR bias field (N4) before scaling.
        deface: remove the face from both images and all masks, setting it to 0.
        dtype: type of the stored images.
        max_voxels: a file that claims more voxels is refused before anything is allocated.
    """

    spacing_mm: tuple[float, float, float] | None = None
    ct_window: tuple[float, float] = (-100.0, 1700.0)
    mr_percentiles: tuple[float, float] = (0.5, 99.8)
    slice_spacing_mm: tuple[float, float, float] = (5.0, 1.0, 1.0)
    register: str = "none"
    brain: str = "auto"
    compare: bool = False
    n4: bool = False
    deface: bool = False
    dtype: str = "float32"
    max_voxels: int = 2**28

    def __post_init__(self) -> None:
        for name, allowed in (("register", REGISTRATIONS), ("brain", BRAIN_METHODS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"unknown choice for {name}",
                    expected=f"one of {', '.join(allowed)}",
                    found=getattr(self, name),
                )
        for name in ("ct_window", "mr_percentiles"):
            low, high = getattr(self, name)
            if not low < high:
                raise ConfigError(f"{name} is empty", expected="low < high", found=f"{low} … {high}")
        if not (self.mr_percentiles[0] >= 0 and self.mr_percentiles[1] <= 100):
            raise ConfigError("mr_percentiles", expected="between 0 and 100", found=str(self.mr_percentiles))
        for name in ("spacing_mm", "slice_spacing_mm"):
            values = getattr(self, name)
            if values is not None and not (len(values) == 3 and all(0.05 <= v <= 50 for v in values)):
                raise ConfigError(
                    f"{name} is not usable", expected="three values, 0.05 to 50 mm", found=str(values)
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, stored with every case."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PrepConfig:
        """Inverse of `to_dict` (lists become tuples)."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
