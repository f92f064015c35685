"""A case's content as one digest: what it shows and where, not how it came to be or how it is cut into files."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case


def content_digest(case: Case, dtype: str = "float32") -> str:
    """SHA-256 (first 16 hex digits) over a case's images, masks and affine, as they are read back from the store.

    Args:
        dtype: of the images in the store; a case that was read from it has the same digest whatever that is.
    """
    images = {name: getattr(case, name) for name in ("anatomy", "companion", "aligned_companion", "chroma")}
    seen = hashlib.sha256(np.ascontiguousarray(case.affine, dtype=np.float64).tobytes())
    for name, array in (images | case.masks).items():
        if array is not None:
            seen.update(f"\0{name} {array.shape}\0".encode())
            for part in array:
                seen.update(_as_read(part, dtype if name in images else "uint8"))
    return seen.hexdigest()[:16]


def _as_read(part: NDArray[Any], dtype: str) -> bytes:
    """A part of an array after a turn through `dtype`, floats as float32; an empty chunk has no zeros below zero."""
    stored = part.astype(dtype)
    return stored.tobytes() if stored.dtype.kind == "u" else (stored.astype(np.float32) + 0).tobytes()
