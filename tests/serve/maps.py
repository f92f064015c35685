"""Maps of a fused case without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clinfuse.case import FloatArray


@dataclass
class Maps:
    """A plain result."""

    fused: FloatArray
    uncertainty: FloatArray
    interval: FloatArray | None = None
    info: dict[str, Any] = field(default_factory=dict)
