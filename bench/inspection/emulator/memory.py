"""Global memory, made of a launch's tensors, and the shared memory of CTAs. Where a GPU faults, `Fault` is raised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

BASE = 1 << 40
"""Where global memory begins. It is above 32 bits, so that an address that lost its high half is caught."""
GAP = 4096
"""At least this many bytes between two tensors belong to neither."""
SECTOR = 32
"""Bytes that the L2 moves at a time."""
LINE = 128
"""Bytes that the 32 banks of shared memory deliver in a cycle."""
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def begins_run(values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before it."""
    begins = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    return begins


def place_in_run(values: np.ndarray) -> np.ndarray:
    """The position of each value in its run of equal values: of threads by warp, the place in the warp."""
    places = np.arange(len(values))
    return places - np.maximum.accumulate(np.where(begins_run(values), places, 0))


def distinct(values: np.ndarray) -> np.ndarray:
    """The values in order, each once. `np.unique` hashes them before it sorts; so few are sorted faster than that."""
    ordered = np.sort(values)
    return ordered[begins_run(ordered)]


class Fault(Exception):
    """An access or an instruction that a GPU refuses, or whose result is undefined."""


class GlobalMemory:
    """The storages of tensors, each at an address of its own with a gap around it, and counts of what was asked."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.places: dict[int, tuple[int, np.ndarray]] = {}
        end = GAP
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.places and storage.nbytes():
                data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                self.places[storage.data_ptr()] = (end, data)
                end += -(-len(data) // GAP) * GAP + GAP
        self.bytes = np.zeros(end, dtype=np.uint8)
        self.owned = np.zeros(end, dtype=bool)
        for start, data in self.places.values():
            self.bytes[start : start + len(data)] = data
            self.owned[start : start + len(data)] = True
        self.sectors = {kind: np.zeros(end // SECTOR + 1, dtype=bool) for kind in ("load", "store")}
        self.counts: Counter[str] = Counter()

    def address(self, tensor: torch.Tensor) -> int:
        """The address of the tensor's first element."""
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            return BASE
        start, _ = self.places[storage.data_ptr()]
        return BASE + start + tensor.data_ptr() - storage.data_ptr()

    def write_back(self) -> None:
        """Copy what was written into the tensors."""
        for start, data in self.places.values():
            data[:] = self.bytes[start : start + len(data)]

    def offsets(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Check the alignment and bounds of addresses, and turn them into places in `bytes`."""
        offsets = addresses.astype(np.int64) - BASE
        if (offsets % size).any():
            raise Fault(f"misaligned access of {size} bytes")
        inside = (offsets >= 0) & (offsets + size <= len(self.bytes))
        if not inside.all() or not (self.owned[offsets].all() and self.owned[offsets + size - 1].all()):
            raise Fault(f"access of {size} bytes outside of every tensor")
        return offsets

    def count(self, kind: str, offsets: np.ndarray, warps: np.ndarray, size: int) -> None:
        """Count one request per warp: its bytes, and the sectors that it touches."""
        spread = offsets[:, None] + np.arange(0, max(size, SECTOR), SECTOR)[None, : max(1, size // SECTOR)]
        sectors = (spread // SECTOR).ravel()
        self.sectors[kind][sectors] = 1
        self.counts[f"{kind} bytes"] += len(offsets) * size
        keys = np.repeat(warps, spread.shape[1]) * len(self.bytes) + sectors
        self.counts[f"{kind} sectors"] += len(distinct(keys))

    def load(self, addresses: np.ndarray, warps: np.ndarray, size: int, count: int) -> np.ndarray:
        """`count` words of `size` bytes at each address -> (threads, count)."""
        offsets = self.offsets(addresses, size * count)
        self.count("load", offsets, warps, size * count)
        return self.bytes.view(UNSIGNED[size])[(offsets // size)[:, None] + np.arange(count)]

    def store(self, addresses: np.ndarray, warps: np.ndarray, values: np.ndarray) -> None:
        """(threads, count) words to the addresses."""
        size = values.dtype.itemsize
        offsets = self.offsets(addresses, size * values.shape[1])
        self.count("store", offsets, warps, size * values.shape[1])
        self.bytes.view(values.dtype)[(offsets // size)[:, None] + np.arange(values.shape[1])] = values


class SharedMemory:
    """The shared memory of several CTAs. Each has `size` bytes, which begin at its own address `base`."""

    base = 1024

    def __init__(self, ctas: int, size: int) -> None:
        self.size = -(-max(size, 16) // 1024) * 1024
        self.limit = size
        self.bytes = np.full(ctas * self.size, 0xA5, dtype=np.uint8)
        self.counts: Counter[str] = Counter()

    def offsets(self, ctas: np.ndarray | int, addresses: np.ndarray, size: int) -> np.ndarray:
        """Check the CTAs' addresses, and turn them into places in `bytes`."""
        inside = addresses.astype(np.int64) - self.base
        if (inside % size).any():
            raise Fault(f"misaligned access of {size} bytes of shared memory")
        if (inside < 0).any() or (inside + size > self.limit).any():
            raise Fault(f"access of {size} bytes outside of the {self.limit} bytes of shared memory")
        return ctas * self.size + inside

    def count(self, kind: str, offsets: np.ndarray, warps: np.ndarray, size: int) -> None:
        """Count the cycles that the 32 banks of 4 bytes need. A wide access goes in parts of one line."""
        lanes_at_once = max(1, min(32, LINE // size))
        if not len(offsets):
            return
        parts = warps * 32 + place_in_run(warps) // lanes_at_once
        words = (offsets[:, None] // 4 + np.arange(max(1, size // 4))).ravel()
        asked = distinct(np.repeat(parts, max(1, size // 4)) << 32 | words)
        banks = np.sort(asked >> 32 << 5 | asked & 31)
        runs = np.flatnonzero(begins_run(banks))
        per_bank = np.diff(runs, append=len(banks))
        worst = np.maximum.reduceat(per_bank, np.flatnonzero(begins_run(banks[runs] >> 5)))
        self.counts[f"{kind} cycles"] += int(worst.sum())
        self.counts[f"{kind} least cycles"] += len(worst)
        self.counts[f"{kind} bytes"] += len(offsets) * size

    def load(self, ctas: np.ndarray, addresses: np.ndarray, warps: np.ndarray, size: int, count: int) -> np.ndarray:
        """`count` words of `size` bytes at each address -> (threads, count)."""
        offsets = self.offsets(ctas, addresses, size * count)
        self.count("load", offsets, warps, size * count)
        return self.bytes.view(UNSIGNED[size])[(offsets // size)[:, None] + np.arange(count)]

    def store(
        self, ctas: np.ndarray, addresses: np.ndarray, warps: np.ndarray, values: np.ndarray, kind: str = "store"
    ) -> None:
        """(threads, count) words to the addresses."""
        size = values.dtype.itemsize
        offsets = self.offsets(ctas, addresses, size * values.shape[1])
        self.count(kind, offsets, warps, size * values.shape[1])
        self.bytes.view(values.dtype)[(offsets // size)[:, None] + np.arange(values.shape[1])] = values
