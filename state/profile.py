"""Profiles: exact, mergeable counts of data against reference bins, per time block.

A profile is one int64 vector a block: rows, then per feature its statuses and cells, then for each pair of numeric or
boolean features the sum of products of their rank scores. Everything is a sum of whole numbers, so any chunking,
order and sharding of the same rows gives the same bytes.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from state.bins import Bins, fit_bins
from state.canonical import canonical_json
from state.cells import FeatureBins, LevelBins, NumericBins, TextBins
from state.columns import ABSENT, N_STATUSES, NOVEL, OUT_OF_BOUNDS, RETYPED, STATUSES, UNPARSABLE, Floats, Ints
from state.encoding import Column
from state.errors import TerminalError
from state.varints import pack, unpack

__all__ = ["Bins", "FeatureCounts", "Profile", "fit_bins", "merge", "read_reference", "write_reference"]

FORMAT = 1
_MAGIC = b"SHPROF\x00\x01"
_CHUNK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureCounts:
    """One feature's counts in some blocks."""

    bins: FeatureBins
    n_rows: Ints
    """Rows of each block, shape `(n_blocks,)`."""
    statuses: Ints
    """Shape `(n_blocks, 7)`, columns as in `STATUSES`."""
    cells: Ints
    """Shape `(n_blocks, n_cells)`; text counts words, everything else rows."""

    def status(self, name: str) -> Ints:
        """Counts of one of `STATUSES` by block."""
        column: Ints = self.statuses[:, STATUSES.index(name)]
        return column

    @property
    def n_valid(self) -> Ints:
        """Rows of each block that have a usable value."""
        usable: Ints = self.n_rows - self.statuses[:, : UNPARSABLE + 1].sum(axis=1)
        return usable

    @property
    def below(self) -> Ints:
        """Rows under the smallest value of the reference; zero for what is not numeric."""
        n_low = self.bins.n_low if isinstance(self.bins, NumericBins) else 0
        counts: Ints = self.cells[:, :n_low].sum(axis=1)
        return counts

    @property
    def above(self) -> Ints:
        """Rows over the largest value of the reference; zero for what is not numeric."""
        first = self.bins.n_low + self.bins.n_interior if isinstance(self.bins, NumericBins) else self.bins.n_cells
        counts: Ints = self.cells[:, first:].sum(axis=1)
        return counts

    @property
    def new_level(self) -> Ints:
        """Rows with a level that the reference has not shown; zero for what is not categorical."""
        cell = self.bins.new_cell if isinstance(self.bins, LevelBins) else None
        column: Ints = np.zeros_like(self.n_rows) if cell is None else self.cells[:, cell]
        return column


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """Counts per time block. Immutable; `+` merges, exactly and in any order."""

    bins: Bins
    blocks: tuple[str, ...]
    """ISO dates or times of the blocks' starts, ascending."""
    counts: Ints
    """Shape `(n_blocks, bins.width)`."""

    @classmethod
    def empty(cls, bins: Bins) -> Profile:
        return cls(bins=bins, blocks=(), counts=np.zeros((0, bins.width), dtype=np.int64))

    @classmethod
    def count(cls, bins: Bins, columns: Mapping[str, Column], blocks: str | Sequence[str]) -> Profile:
        """Count rows. `blocks` is one block for all rows, or one a row. Columns without bins are ignored; bins without
        a column count their rows as `absent`.

        Raises ValueError where the lengths differ.
        """
        known = {name: columns[name] for name in bins.names if name in columns}
        lengths = {len(values) for values in known.values()}
        if not isinstance(blocks, str):
            lengths.add(len(blocks))
        if len(lengths) > 1:
            raise ValueError(f"columns and blocks have different lengths: {sorted(lengths)}")
        n_rows = lengths.pop() if lengths else 0
        if not n_rows:
            return cls.empty(bins)
        names, of_row = _block_index(blocks, n_rows)
        counts = np.zeros((len(names), bins.width), dtype=np.int64)
        for start in range(0, n_rows, _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, n_rows))
            _count_chunk(bins, known, rows, of_row[rows], counts)
        return cls(bins=bins, blocks=names, counts=counts)

    def __add__(self, other: Profile) -> Profile:
        """Raises TerminalError where the two were counted against different bins."""
        return merge([self, other], self.bins)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def n_rows(self) -> Ints:
        """Rows of each block, shape `(n_blocks,)`."""
        column: Ints = self.counts[:, 0]
        return column

    def select(self, blocks: Iterable[str]) -> Profile:
        """The same counts for these blocks only; blocks that it does not hold are passed over."""
        wanted = set(blocks)
        keep = [at for at, block in enumerate(self.blocks) if block in wanted]
        return Profile(bins=self.bins, blocks=tuple(self.blocks[at] for at in keep), counts=self.counts[keep])

    def between(self, start: str, end: str) -> Profile:
        """Blocks with start <= block < end, compared as text."""
        return self.select(block for block in self.blocks if start <= block < end)

    def feature(self, name: str) -> FeatureCounts:
        part = self.counts[:, self.bins.slices[name]]
        return FeatureCounts(
            bins=self.bins.feature(name),
            n_rows=self.n_rows,
            statuses=part[:, :N_STATUSES],
            cells=part[:, N_STATUSES:],
        )

    @property
    def pair_sums(self) -> Ints:
        """Sums of products of rank scores, shape `(n_blocks, len(bins.pairs))`; a missing value scores 0."""
        sums: Ints = self.counts[:, self.bins.width - len(self.bins.pairs) :]
        return sums

    def to_bytes(self) -> bytes:
        """Header of JSON (digest of the bins, blocks), then the counts as a bitmap and variable-length integers."""
        header = canonical_json({"format": FORMAT, "bins_sha256": self.bins.sha256, "blocks": list(self.blocks)})
        return _MAGIC + struct.pack("<I", len(header)) + header + pack(self.counts.ravel())

    @classmethod
    def from_bytes(cls, bins: Bins, data: bytes) -> Profile:
        """Raises TerminalError where `data` is no profile, or one of other bins."""
        try:
            if data[: len(_MAGIC)] != _MAGIC:
                raise TerminalError("not a profile: it does not begin with the profile's mark")
            at = len(_MAGIC) + 4
            (length,) = struct.unpack("<I", data[len(_MAGIC) : at])
            header = json.loads(data[at : at + length])
            if header["bins_sha256"] != bins.sha256:
                raise TerminalError(f"profile of other bins: {header['bins_sha256'][:12]}, not {bins.sha256[:12]}")
            blocks = tuple(header["blocks"])
            counts = unpack(data[at + length :], len(blocks) * bins.width)
        except (struct.error, KeyError, TypeError, ValueError, IndexError) as exc:
            raise TerminalError(f"not a profile: {exc!r}") from exc
        return cls(bins=bins, blocks=blocks, counts=counts.reshape(len(blocks), bins.width))


def merge(profiles: Iterable[Profile], bins: Bins) -> Profile:
    """The sum of any number of profiles of `bins`.

    Raises TerminalError where one was counted against other bins.
    """
    parts = list(profiles)
    for part in parts:
        if part.bins is not bins and part.bins.sha256 != bins.sha256:
            raise TerminalError(f"profiles of different bins cannot be added: {part.bins.sha256[:12]}")
    names = tuple(sorted({block for part in parts for block in part.blocks}))
    index = {name: at for at, name in enumerate(names)}
    counts = np.zeros((len(names), bins.width), dtype=np.int64)
    for part in parts:
        counts[[index[block] for block in part.blocks]] += part.counts
    return Profile(bins=bins, blocks=names, counts=counts)


def write_reference(profile: Profile) -> bytes:
    """The file `profile.bin` of a model package: bins and the reference profile by block."""
    bins = profile.bins.to_json()
    return struct.pack("<I", len(bins)) + bins + profile.to_bytes()


@functools.lru_cache(maxsize=16)
def read_reference(data: bytes) -> Profile:
    """The reference profile, its bins as `.bins`; the same file gives the same object, whose counts cannot be changed.

    Raises TerminalError where `data` is no such file.
    """
    if len(data) < 4:
        raise TerminalError("not a reference profile: the file is too short")
    (length,) = struct.unpack("<I", data[:4])
    profile = Profile.from_bytes(Bins.from_json(data[4 : 4 + length]), data[4 + length :])
    profile.counts.flags.writeable = False
    return profile


def _block_index(blocks: str | Sequence[str], n_rows: int) -> tuple[tuple[str, ...], Ints]:
    if isinstance(blocks, str):
        return (blocks,), np.zeros(n_rows, dtype=np.int64)
    names = tuple(sorted({str(block) for block in blocks}))
    index = {name: at for at, name in enumerate(names)}
    return names, np.array([index[str(block)] for block in blocks], dtype=np.int64)


def _count_chunk(bins: Bins, columns: Mapping[str, Column], rows: slice, of_row: Ints, counts: Ints) -> None:
    n_blocks = len(counts)
    counts[:, 0] += np.bincount(of_row, minlength=n_blocks)
    scores: dict[str, Floats] = {}
    scored = {feature.name for feature in bins.scored}
    for feature in bins.features:
        part = counts[:, bins.slices[feature.name]]
        if feature.name not in columns:
            part[:, ABSENT] += np.bincount(of_row, minlength=n_blocks)
            continue
        located = feature.locate(_rows(columns[feature.name], rows))
        width = N_STATUSES + feature.n_cells
        block = of_row if located.rows is None else of_row[located.rows]
        flat = located.slots if n_blocks == 1 else located.slots + block * width
        part += np.bincount(flat, minlength=n_blocks * width).reshape(n_blocks, width)
        overlays = ((RETYPED, located.retyped), (OUT_OF_BOUNDS, located.out_of_bounds), (NOVEL, located.novel))
        for status, where in overlays:
            if len(where):
                part[:, status] += np.bincount(of_row[where], minlength=n_blocks)
        if feature.name in scored and not isinstance(feature, TextBins):
            table = np.concatenate([np.zeros(N_STATUSES), feature.scores])
            scores[feature.name] = table[located.slots]
    if bins.pairs:
        absent = np.zeros(len(of_row))
        matrix = np.stack([scores.get(feature.name, absent) for feature in bins.scored], axis=1)
        _count_pairs(matrix, of_row, counts[:, bins.width - len(bins.pairs) :])


def _count_pairs(matrix: Floats, of_row: Ints, sums: Ints) -> None:
    upper = np.triu_indices(matrix.shape[1], 1)
    for block in range(len(sums)) if len(sums) > 1 else [0]:
        part = matrix if len(sums) == 1 else matrix[of_row == block]
        if len(part):
            # Products of whole numbers below 2**53 are exact in float64, whatever the order of summation.
            sums[block] += (part.T @ part)[upper].astype(np.int64)


def _rows(values: Column, rows: slice) -> Column:
    if isinstance(values, np.ndarray | list | tuple):
        return values[rows]
    return np.asarray(values)[rows]
