"""Sparse integers as few bytes: a bitmap of the non-zero ones and variable-length numbers (zigzag LEB128)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]


def pack(values: Ints) -> bytes:
    """Bitmap of the non-zero ones, then those as zigzag LEB128."""
    bitmap = np.packbits(values != 0).tobytes()
    found = values[values != 0]
    rest = ((found << 1) ^ (found >> 63)).view(np.uint64)
    n_groups = np.ones(len(rest), dtype=np.int64)
    for shift in range(7, 64, 7):
        n_groups += (rest >> np.uint64(shift)) > 0
    ends = np.cumsum(n_groups)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for group in range(10):
        alive = n_groups > group
        if not alive.any():
            break
        low7 = ((rest[alive] >> np.uint64(7 * group)) & np.uint64(0x7F)).astype(np.uint8)
        more = np.where(n_groups[alive] > group + 1, 0x80, 0).astype(np.uint8)
        out[ends[alive] - n_groups[alive] + group] = low7 | more
    return bitmap + out.tobytes()


def unpack(data: bytes, n_values: int) -> Ints:
    """The integers that `pack` wrote. Raises ValueError where `data` is not `n_values` of them."""
    n_bitmap = (n_values + 7) // 8
    present = np.unpackbits(np.frombuffer(data[:n_bitmap], dtype=np.uint8), count=n_values).astype(bool)
    stream = np.frombuffer(data[n_bitmap:], dtype=np.uint8)
    last = np.flatnonzero(stream < 0x80)
    n_present = int(present.sum())
    if len(data) < n_bitmap or len(last) != n_present or (len(stream) and last[-1:] != len(stream) - 1):
        raise ValueError("the counts are cut short or changed")
    numbers = np.zeros(n_present, dtype=np.uint64)
    if n_present:
        first = np.concatenate([[0], last[:-1] + 1])
        of_number = np.repeat(np.arange(n_present), last - first + 1)
        shift = (np.arange(len(stream)) - first[of_number]) * 7
        groups = (stream & 0x7F).astype(np.uint64) << shift.astype(np.uint64)
        np.bitwise_or.at(numbers, of_number, groups)
    values = np.zeros(n_values, dtype=np.int64)
    values[present] = (numbers >> np.uint64(1)).astype(np.int64) ^ -(numbers & np.uint64(1)).astype(np.int64)
    return values
