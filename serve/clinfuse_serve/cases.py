"""Where the case of a request comes from: kept from before, another replica's, an example, or uploads to prepare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from clinfuse_serve.backend import Backend
from clinfuse_serve.examples import Examples
from clinfuse_serve.fuse import came_as_picture, modalities_of
from clinfuse_serve.kept import KeptCase, KeptCases, case_token, check_kind, check_roles
from clinfuse_serve.limits import Limits
from clinfuse_serve.metrics import Metrics
from clinfuse_serve.problems import ProblemError, case_gone
from clinfuse_serve.schemas import FuseParams


class Cases:
    """Cases of one replica, prepared and aligned once, held by the backend.

    Args:
        backend: holds cases for the members, and finds those that other replicas keep.
        limits: bounds of this replica.
        secret: key of case tokens, equal on all replicas of one service.
        examples: cases offered for trying out.
        metrics: hears of kept cases that were used again.
    """

    def __init__(
        self, backend: Backend, limits: Limits, secret: bytes, examples: Examples, metrics: Metrics
    ) -> None:
        self.backend, self.limits, self.secret = backend, limits, secret
        self.examples, self.metrics = examples, metrics
        self.kept = KeptCases(limits.kept_bytes, limits.kept_s)

    async def case_of(self, params: FuseParams, files: Mapping[str, Path]) -> KeptCase:
        """The case that a request means.

        Raises:
            InputError: an image is missing or cannot be used, or the case that is named is of another kind of
                companion than is said. ProblemError: the case is no longer kept (410).
        """
        if params.case is not None and not files:
            kept = self.kept.get(params.case) or await self._from_peer(params.case)
            if kept is None:
                raise ProblemError(case_gone())
            check_kind(kept.case, params.companion_kind)
            self.metrics.count("clinfuse_kept_case_hits_total")
            return kept
        if params.example is not None and not files:
            name = params.example
            kept = await self.keep(
                f"example{name}", lambda: KeptCase(f"example{name}", self.examples.case(name))
            )
            check_kind(kept.case, params.companion_kind)
            return kept
        check_roles(files)
        kind = params.companion_kind
        token = await asyncio.to_thread(case_token, self.secret, files, kind)
        return await self.keep(token, partial(self._prepared, token, files, kind))

    async def keep(self, token: str, make: Callable[[], KeptCase]) -> KeptCase:
        """The kept case of that token, or a new one, aligned as `FusionPipeline` itself would take it."""
        kept = self.kept.get(token)
        if kept is None:
            kept = await asyncio.to_thread(_made_aligned, make)
        return await self._held(kept)

    async def _from_peer(self, token: str) -> KeptCase | None:
        found = await self.backend.find_case(token)
        return None if found is None else await self._held(found)

    async def _held(self, kept: KeptCase) -> KeptCase:
        if kept.held is None:
            kept.held = await self.backend.hold(kept.case)
        self.kept.put(kept)
        return kept

    def _prepared(self, token: str, files: Mapping[str, Path], kind: str | None) -> KeptCase:
        from clinfuse_prep.config import PrepConfig
        from clinfuse_prep.prepare import prepare_pair

        case = prepare_pair(
            files["anatomy"],
            files["companion"],
            brain=files.get("brain"),
            bone=files.get("bone"),
            lesion=files.get("lesion"),
            config=PrepConfig(max_voxels=self.limits.voxels),
            case_id=token,
            modalities=modalities_of(kind),
        )
        return KeptCase(token, case, "png" if came_as_picture(case) else "nifti")


def _made_aligned(make: Callable[[], KeptCase]) -> KeptCase:
    from clinfuse.alignment import aligned

    kept = make()
    return replace(kept, case=aligned(kept.case))
