"""Prepared cases kept for a while, so that a changed preset costs only the sampler's steps.

Tokens are keyed hashes of the uploaded bytes and of what the companion is said to be: pseudonyms that nobody without
the service's secret can link, and equal on every aggregator replica, so that the same images sent to another replica
give the same token.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinfuse.case import Case
from clinfuse.errors import InputError
from clinfuse_serve.recent import Clock, Recent


@dataclass
class KeptCase:
    """One prepared case.

    Attributes:
        token: what a client says to use it again; also the case id.
        case: the prepared case.
        kind: how the anatomy image came in: "nifti" or "png".
        held: the backend's own reference to the case (e.g. in the object store).
    """

    token: str
    case: Case
    kind: str = "nifti"
    held: Any = None

    @property
    def bytes(self) -> int:
        """Memory of its arrays."""
        return self.case.nbytes


def case_token(secret: bytes, files: Mapping[str, Path], kind: str | None = None) -> str:
    """Pseudonym of a set of uploads: `case` and 20 hexadecimal digits of a keyed hash over roles, bytes and kind.

    Args:
        secret: the service's key.
        files: role → file.
        kind: what the companion is said to be; the same images said to be of another kind are another case.
    """
    total = hmac.new(secret, f"{kind or ''}:".encode(), hashlib.sha256)
    for role in sorted(files):
        total.update(f"{role}:{files[role].stat().st_size}:".encode())
        with files[role].open("rb") as stream:
            while piece := stream.read(1 << 20):
                total.update(piece)
    return f"case{total.hexdigest()[:20]}"


class KeptCases:
    """The most recently used cases within a bound of bytes and of idle seconds."""

    def __init__(self, max_bytes: int, max_idle_s: float, clock: Clock = time.monotonic) -> None:
        self._recent: Recent[KeptCase] = Recent(max_bytes, max_idle_s, clock)

    def get(self, token: str) -> KeptCase | None:
        """The case of that token, which is then the last to go; None if it is not kept."""
        return self._recent.get(token)

    def put(self, kept: KeptCase) -> None:
        """Keep a case; the least recently used go until all fit."""
        self._recent.put(kept.token, kept, kept.bytes)

    @property
    def bytes(self) -> int:
        """Memory of all kept cases."""
        return self._recent.bytes

    def __len__(self) -> int:
        return len(self._recent)


def check_roles(files: Mapping[str, Any]) -> None:
    """Refuse a request without both images.

    Raises:
        InputError: anatomy or companion is missing.
    """
    missing = [role for role in ("anatomy", "companion") if role not in files]
    if missing:
        raise InputError(
            f"the {' and the '.join(missing)} image is missing",
            expected="form files 'anatomy' and 'companion', or params.case, or params.example",
            found=", ".join(sorted(files)) or "no file",
            todo="send both images of the pair",
        )


def check_kind(case: Case, kind: str | None) -> None:
    """Refuse a kept case or an example whose companion was prepared as another kind than is said now.

    Raises:
        InputError: it was.
    """
    if kind is not None and case.modalities[1] != kind.upper():
        raise InputError(
            "this case was prepared with another kind of companion",
            expected=f"companion_kind {kind}",
            found=case.modalities[1],
            case=case.case_id,
            todo="send the images again with this companion_kind, or leave it out",
        )
