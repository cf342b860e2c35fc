"""Feature maps of images, computed once and kept in a file that is gone with its process."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from codo.errors import CodoError

ALIGNMENT = 64
"""Bytes."""


class _Place(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Kept:
    """What is known of an image without reading it again: the size it is read at, or why it cannot be read."""

    size: tuple[int, int]
    reason: str | None = None


class Features:
    """Feature maps on disk, memory-mapped: what is used often stays in the memory that is free.

    They are kept bit for bit, in the precision that they were computed in (fp32; under autocast bf16 or fp16). The file
    has no name: it vanishes with the process, however that ends.

    Args:
        folder: the disk to use.

    Example:
        >>> features = Features(Path(tempfile.gettempdir()))
        >>> features.add((0, False), [torch.ones(1, 2, 3, 4)])
        >>> features.close()
        >>> features[0, False][0].shape
        torch.Size([1, 2, 3, 4])
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the features)
        except OSError as error:
            raise CodoError(f"cannot keep features in {folder}: {error.strerror}") from error
        self._places: dict[tuple[int, bool], list[_Place]] = {}
        self._map: mmap.mmap | None = None
        self.bytes = 0

    def add(self, key: tuple[int, bool], levels: Sequence[Tensor]) -> None:
        """Keep the levels `(1, C, h, w)` of an image, plain or mirrored.

        Raises:
            CodoError: the disk is full.
        """
        places = []
        for level in levels:
            rows = level.detach().cpu().permute(0, 2, 3, 1).contiguous()  # channels last, as they are used
            raw = rows.flatten().view(torch.uint8).numpy()
            places.append(_Place(self.bytes, tuple(rows.shape), rows.dtype))
            try:
                self._file.write(raw.data)
                self._file.write(bytes(-len(raw) % ALIGNMENT))
            except OSError as error:
                raise CodoError(
                    f"cannot keep features in {self._folder}: {error.strerror}; free some space, or set "
                    "run.feature_cache=0"
                ) from error
            self.bytes += len(raw) + -len(raw) % ALIGNMENT
        self._places[key] = places

    def close(self) -> None:
        """Stop adding, and map what was added."""
        self._file.flush()
        if self.bytes:
            # A private, writable mapping: torch warns of read-only memory.
            self._map = mmap.mmap(self._file.fileno(), self.bytes, access=mmap.ACCESS_COPY)

    def __getitem__(self, key: tuple[int, bool]) -> list[Tensor]:
        """Read levels `(1, C, h, w)`; after `close`."""
        assert self._map is not None, "close() first"
        return [
            torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape), offset=offset)
            .view(shape)
            .permute(0, 3, 1, 2)
            for offset, shape, dtype in self._places[key]
        ]

    def __len__(self) -> int:
        """Count the images, mirrored ones apart."""
        return len(self._places)
