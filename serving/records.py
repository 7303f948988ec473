"""Prediction records, off the request path: a journal within milliseconds, parquet within seconds.

A row is first held in memory, written to an append-only journal at least every `TICK_SECONDS`, and compacted into
one parquet file per event day. A process killed in between leaves its journal; whoever compacts it later writes the
same file names, so that nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from state.contract import Contract
from state.encoding import FeatureType, levels_of, numbers_of, parse_boolean, parse_number

log = logging.getLogger(f"steadyhand.{__name__}")

TICK_SECONDS = 0.05
COMPACT_ROWS = 4096
COMPACT_SECONDS = 30.0
MAX_HELD_ROWS = 200_000
DAY_MICROSECONDS = 86_400_000_000
JOURNALS = "journal"

Score: TypeAlias = float | list[float] | None
Record: TypeAlias = tuple[str, str, int, str, bool, Score, list[str], int, list[Any]]
"""request_id, entity, event time in microseconds, arm, mirrored, score, flags, recorded time, feature values."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a journal: enough to compact it without the model package."""

    format: int = 1
    version: str
    multiclass: bool
    features: list[tuple[str, FeatureType]]

    @classmethod
    def of(cls, contract: Contract, version: str) -> Header:
        features = [(feature.name, feature.type) for feature in contract.features]
        return cls(version=version, multiclass=contract.task == "multiclass", features=features)


@dataclass(slots=True, kw_only=True)
class _Journal:
    descriptor: int
    path: Path
    name: str
    """Stem of the parquet files that it becomes."""
    size: int
    opened: float


class Recorder:
    """Keeps the records of one server process. `add` is called by the event loop, the rest by one thread at a time."""

    def __init__(self, folder: Path, header: Header) -> None:
        """`folder` is `predictions/<model>`; leftover journals of the version are compacted first."""
        self._folder, self._header = folder, header
        self._held: list[Record] = []
        self._written: list[Record] = []
        self._journal: _Journal | None = None
        self._sequence = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.dropped = 0
        (folder / JOURNALS).mkdir(parents=True, exist_ok=True)
        compact_leftovers(folder, version=header.version)
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Keep one record; costs one list append."""
        if len(self._held) + len(self._written) >= MAX_HELD_ROWS:
            self.dropped += 1
            return
        self._held.append(record)

    def flush(self) -> None:
        """Return once every record added so far is in parquet.

        Raises:
            OSError: the disk refused; the rows are still held.
        """
        with self._lock:
            self._write()
            self._compact()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            try:
                with self._lock:
                    self._write()
                    if self._journal is not None and self._due(self._journal):
                        self._compact()
            except OSError as exc:
                log.error("records of version %s wait for the disk: %s", self._header.version, exc)

    def _due(self, journal: _Journal) -> bool:
        return len(self._written) >= COMPACT_ROWS or time.monotonic() - journal.opened >= COMPACT_SECONDS

    def _write(self) -> None:
        # The event loop appends while this thread slices: both are atomic, and only this thread removes.
        batch = self._held[:]
        if not batch:
            return
        journal = self._journal or self._open()
        data = _encoder.encode_lines(batch)
        try:
            _write_all(journal.descriptor, data)
        except OSError:
            os.ftruncate(journal.descriptor, journal.size)
            raise
        journal.size += len(data)
        self._written += batch
        del self._held[: len(batch)]

    def _open(self) -> _Journal:
        # Wall-clock milliseconds, strictly rising: a pid that comes back after a reboot never meets its old names.
        self._sequence = max(self._sequence + 1, time.time_ns() // 1_000_000)
        name = f"{self._header.version}-{os.getpid()}-{self._sequence}"
        path = self._folder / JOURNALS / f"{name}.jsonl"
        unlocked = path.with_suffix(".new")
        descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # The lock says "in use" and goes with the process, however that ends; only a locked journal gets its name.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        head = _encoder.encode(self._header) + b"\n"
        _write_all(descriptor, head)
        unlocked.rename(path)
        self._journal = _Journal(descriptor=descriptor, path=path, name=name, size=len(head), opened=time.monotonic())
        return self._journal

    def _compact(self) -> None:
        journal = self._journal
        if journal is None:
            return
        write_parquet(self._folder, self._header, self._written, name=journal.name)
        journal.path.unlink()
        os.close(journal.descriptor)
        self._journal = None
        self._written = []


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def compact_leftovers(folder: Path, *, version: str | None = None) -> int:
    """Compact the journals under `folder` that no living process holds; returns how many."""
    done = 0
    for path in sorted((folder / JOURNALS).glob(f"{version or '*'}-*-*.jsonl")):
        if version is not None and path.stem.rsplit("-", 2)[0] != version:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _compact_journal(folder, path)
            done += 1
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return done


def _compact_journal(folder: Path, path: Path) -> None:
    head, *lines = path.read_bytes().split(b"\n")
    rows: list[Record] = []
    try:
        header = msgspec.json.decode(head, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        log.warning("%s has no header: its process was killed before the first record", path)
        path.unlink()
        return
    # What stands after the last newline was being written when the process was killed.
    for number, line in enumerate(lines[:-1], start=2):
        try:
            rows.append(_decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            log.warning("%s line %d is not a record and is left out: %s", path, number, exc)
    write_parquet(folder, header, rows, name=path.stem)
    path.unlink()


def write_parquet(folder: Path, header: Header, rows: Sequence[Record], *, name: str) -> None:
    """Write `day=YYYY-MM-DD/<name>.parquet` for every event day in `rows`; the same name replaces the same rows."""
    days: defaultdict[int, list[Record]] = defaultdict(list)
    for row in rows:
        days[row[2] // DAY_MICROSECONDS].append(row)
    for day, chosen in days.items():
        date = datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
        target = folder / f"day={date}" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{name}.tmp")
        with temporary.open("wb") as file:
            pq.write_table(_table(header, chosen), file, compression="lz4")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)


def _table(header: Header, rows: Sequence[Record]) -> pa.Table:
    request_id, entity, event, arm, mirrored, score, flags, recorded, values = zip(*rows, strict=True)
    moment = pa.timestamp("us", tz="UTC")
    columns: dict[str, pa.Array] = {
        "request_id": pa.array(request_id, pa.string()),
        "entity": pa.array(entity, pa.string()),
        "event_time": pa.array(event, pa.int64()).cast(moment),
        "version": pa.array([header.version] * len(rows), pa.string()),
        "arm": pa.array(arm, pa.string()),
        "mirrored": pa.array(mirrored, pa.bool_()),
        "score": pa.array(score, pa.list_(pa.float64()) if header.multiclass else pa.float64()),
        "flags": pa.array(flags, pa.list_(pa.string())),
        "recorded_at": pa.array(recorded, pa.int64()).cast(moment),
    }
    for (name, kind), raw in zip(header.features, zip(*values, strict=True), strict=True):
        columns[name] = _feature(kind, list(raw))
    return pa.table(columns)


def _feature(kind: FeatureType, raw: list[Any]) -> pa.Array:
    if kind in ("categorical", "text"):
        return pa.array(levels_of(raw), pa.string())
    numbers = numbers_of(raw, parse_boolean if kind == "boolean" else parse_number)
    return pa.array(numbers.astype(np.float32), pa.float32(), from_pandas=True)


def main() -> None:
    """`python -m serving.records FOLDER`: compact what killed servers left behind."""
    compact_leftovers(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
