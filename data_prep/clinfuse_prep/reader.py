"""Random slices and patches from a dataset: decoded once into a node-local cache, then only sliced.

Zarr shards hold the data compactly; random reads straight from them cost milliseconds each. So every case of the
split is decoded once, into memory when it fits and else into memory-mapped files, and a batch is plain indexing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse_prep.sampling import Shares, centres, crop_start, draw_centre
from clinfuse_prep.store import CaseStore

KEYS = ("anatomy", "companion", "aligned", "brain", "bone", "lesion")
MEMORY_SHARE = 0.25
ROUNDS_KEPT = 64
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Held:
    """One decoded case: (6, D, H, W) in the order of KEYS, masks as 0 and 1 in the images' dtype."""

    case_id: str
    data: NDArray[np.float32]
    spacing: tuple[float, float, float]
    centres: dict[str, NDArray[np.int32]]
    has_ct: bool


class ShardReader:
    """Batches of random crops, the same for the same (seed, rank, step).

    Args:
        path: the dataset.
        split: "train", "val" or "test".
        crop: size in voxels: (H, W) with `spatial_dims` 2, (D, H, W) with 3. Smaller images are padded with 0.
        batch_size: crops per batch.
        seed: of the drawing. rank, world_size: this worker's share of the cases is every world_size-th; workers
            beyond the number of cases share them.
        cache: False keeps decoded cases in memory-mapped files even when memory would do.
        shares: where crops are centred.

    Raises:
        InputError: the split is empty. ConfigError: crop and spatial_dims do not fit.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        crop: tuple[int, ...],
        batch_size: int,
        spatial_dims: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        cache: bool = True,
        shares: Shares | None = None,
    ) -> None:
        if spatial_dims not in (2, 3) or len(crop) != spatial_dims or min(crop) < 1:
            raise ConfigError(
                "crop and spatial_dims do not fit",
                expected="2 sizes with 2 dimensions, 3 with 3",
                found=f"crop {crop}, spatial_dims {spatial_dims}",
            )
        self.store = CaseStore(path)
        ids = self.store.case_ids(split)
        if not ids:
            raise InputError(
                f"the dataset has no {split} cases",
                expected="at least one",
                found=f"{len(self.store.case_ids())} cases in all",
                todo="prepare more patients, or change --split",
            )
        mine = ids[rank % world_size :: world_size] if len(ids) >= world_size else [ids[rank % len(ids)]]
        self.crop, self.batch_size, self.spatial_dims = tuple(crop), batch_size, spatial_dims
        self.seed, self.rank, self.shares = seed, rank, shares or Shares()
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held = [self._decode(case_id, cache) for case_id in mine]

    @property
    def case_ids(self) -> list[str]:
        """The cases of this worker."""
        return [held.case_id for held in self._held]

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every axial slice (2D) or every crop's worth of volume (3D) was seen once on average."""
        if self.spatial_dims == 2:
            total = sum(held.data.shape[1] for held in self._held)
        else:
            total = sum(
                int(np.ceil(np.prod(held.data.shape[1:]) / np.prod(self.crop))) for held in self._held
            )
        return max(1, -(-total // self.batch_size))

    def __call__(self, step: int, crop: tuple[int, ...] | None = None, shares: Shares | None = None) -> Batch:
        """The batch of a step.

        Args:
            step: 0, 1, …
            crop: another size than the reader's own, of as many dimensions.
            shares: other places than the reader's own.

        Returns:
            anatomy, companion, aligned, brain, bone, lesion: float32 (B, 1, *crop) in [0, 1]; `aligned` is the
            companion without its misregistration where that is known, else the companion. spacing: float32
            (B, spatial_dims) mm. ct: float32 (B,), 1 where the companion is a CT, 0 for SPECT and PET.
        """
        rng = np.random.default_rng([self.seed, self.rank, step])
        out = np.zeros((len(KEYS), self.batch_size, 1, *(crop or self.crop)), np.float32)
        spacing = np.empty((self.batch_size, self.spatial_dims), np.float32)
        ct = np.empty(self.batch_size, np.float32)
        for item in range(self.batch_size):
            held = self._held[self._turn(step * self.batch_size + item)]
            d, h, w = held.data.shape[1:]
            centre = draw_centre(held.centres, shares or self.shares, (d, h, w), rng)
            self._cut(held.data, centre, out[:, item, 0], rng)
            spacing[item], ct[item] = held.spacing[-self.spatial_dims :], held.has_ct
        batch = {key: torch.from_numpy(out[index]) for index, key in enumerate(KEYS)}
        return {**batch, "spacing": torch.from_numpy(spacing), "ct": torch.from_numpy(ct)}

    def cases_at(self, step: int) -> list[str]:
        """Ids of the cases that the batch of a step draws from, for messages."""
        first = step * self.batch_size
        return [self._held[self._turn(first + item)].case_id for item in range(self.batch_size)]

    def close(self) -> None:
        """Remove the cache files, if any."""
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _turn(self, position: int) -> int:
        """Which case comes at a position: each once per round, the order drawn anew in every round."""
        count = len(self._held)
        round_number, place = divmod(position, count)
        if round_number not in self._orders:
            if len(self._orders) >= ROUNDS_KEPT:
                self._orders.clear()
            rng = np.random.default_rng([self.seed, self.rank, 7919, round_number])
            self._orders[round_number] = rng.permutation(count)
        return int(self._orders[round_number][place])

    def _cut(
        self,
        data: NDArray[np.float32],
        centre: tuple[int, int, int],
        out: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> None:
        """Copy one crop of all six arrays into out (6, *crop)."""
        source: list[slice | int] = [slice(None)]
        target: list[slice] = [slice(None)]
        if self.spatial_dims == 2:
            source.append(centre[0])
        for axis, size in zip(range(3 - self.spatial_dims, 3), out.shape[1:], strict=True):
            length = data.shape[1 + axis]
            start = crop_start(centre[axis], size, length, rng)
            low, high = max(start, 0), min(start + size, length)
            source.append(slice(low, high))
            target.append(slice(low - start, high - start))
        out[tuple(target)] = data[tuple(source)]

    def _decode(self, case_id: str, cache: bool) -> _Held:
        case = self.store.read(case_id)
        data = self._room(case, cache)
        aligned = case.companion if case.aligned_companion is None else case.aligned_companion
        arrays: tuple[NDArray[Any], ...] = (
            case.anatomy,
            case.companion,
            aligned,
            case.brain,
            case.bone,
            case.lesion,
        )
        for index, array in enumerate(arrays):
            data[index] = array
        return _Held(case_id, data, case.spacing, centres(case, self.seed), case.has_ct)

    def _room(self, case: Case, cache: bool) -> NDArray[np.float32]:
        """Space for a decoded case: memory if a quarter of what is free holds it, else a file."""
        shape = (len(KEYS), *case.shape)
        if cache and 4 * int(np.prod(shape)) < MEMORY_SHARE * psutil.virtual_memory().available:
            return np.empty(shape, np.float32)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="clinfuse-")
        return np.lib.format.open_memmap(
            Path(self._folder.name) / f"{case.case_id}.npy", mode="w+", dtype=np.float32, shape=shape
        )
