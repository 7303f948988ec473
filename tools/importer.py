"""Import of a model's files into the workspace: history for training, and later rows as traffic to replay.

Twice the same files is once: the manifest, written last, names what was imported by digest. Memory is bounded
by a batch of the source and by `_GROUP_ROWS` rows of the days being written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from state.canonical import Json, digest
from state.clock import utc
from state.errors import InputError
from state.spec import FilesData, ModelSpec
from tools.coerce import label_indices
from tools.datastore import Kind, Manifest, day_path, read_manifest, replace_parquet, row_schema, write_manifest
from tools.intake import REJECT_SCHEMA, Progress, Reading, Tally, find_time_reading, stage, wanted_columns
from tools.sources import SourceFile, list_sources, require_columns

_GROUP_ROWS = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What the workspace holds of the model's files after an import."""

    changed: bool
    """False where these very files had been imported before."""
    manifest: Manifest


def import_files(
    root: Path,
    spec: ModelSpec,
    base_path: Path,
    *,
    until: datetime | None = None,
    start: datetime | None = None,
    progress: Progress | None = None,
) -> ImportResult:
    """Bring the spec's files into the workspace `root`; rows from `until` on become traffic, not history.

    Rows without a readable time or label are set aside in `rejects/<model>.parquet` and counted in the manifest.
    A row whose label is merely empty stays: its label may never come. Idempotent by the files' digests; new
    files are added, a changed file brings a rebuild.

    Raises:
        InputError: the files cannot be used as the spec says; names file, column or record and the remedy.
    """
    data = spec.data
    if not isinstance(data, FilesData):
        raise InputError(
            f"{spec.model}: data.kind {data.kind!r} is not served yet", remedy="Export it to parquet files"
        )
    sources = list_sources((base_path / data.path).resolve())
    for source in sources:
        require_columns(source, wanted_columns(spec))
    until, start = utc(until) if until else None, utc(start) if start else None
    old = read_manifest(root, spec.model)
    reading_sha256 = _reading_sha256(spec, until, start)
    files = {source.name: source.sha256 for source in sources}
    same_reading = old is not None and old.reading_sha256 == reading_sha256
    if old is not None and same_reading and old.files == files:
        return ImportResult(changed=False, manifest=old)
    grown = old is not None and same_reading and old.files.items() <= files.items()
    base = old if grown else None
    fresh = [source for source in sources if base is None or source.name not in base.files]
    reading = Reading(
        spec=spec,
        data=data,
        time_reading=base.time_reading if base else find_time_reading(sources, data.time),
        until=until,
        start=start,
    )
    staging = _fresh_staging(root, spec.model)
    try:
        tally = stage(fresh, reading, staging, progress)
        _refuse_useless(tally, reading, sources, base)
        manifest = _manifest(tally, reading, base, files=files, reading_sha256=reading_sha256)
        if base is None:
            _clear(root, spec.model)
        _write_days(root, reading, tally, staging, manifest.classes, merge=base is not None)
        _write_rejects(root, spec.model, tally.rejects, fresh=fresh, merge=base is not None)
        write_manifest(root, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ImportResult(changed=True, manifest=manifest)


def _reading_sha256(spec: ModelSpec, until: datetime | None, start: datetime | None) -> str:
    """Digest of everything but the files that decides what the stored rows are."""
    settled: dict[str, Json] = {
        "time": spec.data.time,
        "entity": list(spec.data.entity),
        "label": spec.data.label.model_dump(mode="json"),
        "features": [[feature.name, feature.type] for feature in spec.features],
        "task": spec.task,
        "until": until.isoformat() if until else None,
        "start": start.isoformat() if start else None,
    }
    return digest(settled)


def _fresh_staging(root: Path, model: str) -> Path:
    parent = root / "staging"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{model}.*"):  # what a killed import left behind
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{model}.", dir=parent))


def _refuse_useless(tally: Tally, reading: Reading, sources: Sequence[SourceFile], base: Manifest | None) -> None:
    spec, where = reading.spec, sources[0].path if len(sources) == 1 else sources[0].path.parent
    refused = pl.concat(tally.rejects) if tally.rejects else pl.DataFrame(schema=REJECT_SCHEMA)
    if refused.height and refused.height * 2 >= tally.n_read:
        first = refused.row(0, named=True)
        raise InputError(
            f"{refused.height} of {tally.n_read} rows of {where} are unreadable; the first is row {first['row']} of "
            f"{first['source']}: {first['reason']} ({first['value']!r})",
            remedy=f"Correct data.time ({spec.data.time!r}) or data.label.column ({spec.data.label.column!r})",
        )
    if base is not None:
        return
    if not tally.days:
        raise InputError(f"{where} holds no rows in the window", remedy="Check the file, and the first day asked for")
    first_day = min(tally.days)
    if reading.until is not None and reading.until <= datetime.fromisoformat(first_day).replace(tzinfo=UTC):
        raise InputError(
            f"{where} holds no history: its first day is {first_day}, and history ends at {reading.until.isoformat()}",
            remedy="Start the replay later",
        )
    _refuse_labels(tally, spec, where)
    for feature in spec.features:
        if tally.unparsable[feature.name] and not tally.n_filled[feature.name]:
            raise InputError(
                f"feature {feature.name!r} is declared {feature.type}, and none of its values is: "
                f"{tally.examples[feature.name]}",
                remedy="Declare it categorical or text, or correct the column",
            )


def _refuse_labels(tally: Tally, spec: ModelSpec, where: Path) -> None:
    column = spec.data.label.column
    if not tally.labels:
        raise InputError(
            f"column {column!r} of {where} holds no label in the history", remedy="Set data.label.column to the outcome"
        )
    if spec.task == "regression":
        return
    values = pl.Series(list(tally.labels))
    classes = len(values) if spec.task == "multiclass" else label_indices(spec, (), values).n_unique()
    shown = ", ".join(repr(name) for name, _ in tally.labels.most_common(5))
    if classes < 2:
        raise InputError(
            f"column {column!r} of {where} holds one class only (values: {shown}; "
            f"data.label.positive: {spec.data.label.positive!r})",
            remedy="Set data.label.positive to the value that counts as class 1, or widen the window",
        )
    if spec.task == "binary" and spec.data.label.positive is None and len(values) > 2:
        raise InputError(
            f"column {column!r} of {where} holds {len(values)} values ({shown}) for a binary task",
            remedy="Set data.label.positive to the one that counts as class 1, or set task: multiclass",
        )


def _classes(tally: Tally, spec: ModelSpec, base: Manifest | None) -> list[str]:
    """Names by index. An index never changes its meaning: a class that appears later is appended."""
    if spec.task == "regression":
        return []
    if spec.task == "binary":
        if base is not None:
            return base.classes
        index = label_indices(spec, (), pl.Series(list(tally.labels)))
        named = [[name for name, at in zip(tally.labels, index, strict=True) if at == side] for side in (0.0, 1.0)]
        positive = named[1][0]
        return [named[0][0] if len(named[0]) == 1 else f"not {positive}", positive]
    known = base.classes if base else sorted(tally.labels)
    return [*known, *sorted({*tally.labels, *tally.later_labels} - set(known))]


def _manifest(
    tally: Tally, reading: Reading, base: Manifest | None, *, files: dict[str, str], reading_sha256: str
) -> Manifest:
    until_day = reading.until.date().isoformat() if reading.until else None
    rejects = Counter(reason for frame in tally.rejects for reason in frame["reason"])
    days = Counter(base.days if base else {}) + tally.days
    return Manifest(
        model=reading.spec.model,
        files=files,
        reading_sha256=reading_sha256,
        time_reading=reading.time_reading,
        until=reading.until,
        delay_seconds=reading.data.label.delay.total_seconds(),
        task=reading.spec.task,
        classes=_classes(tally, reading.spec, base),
        features={feature.name: feature.type for feature in reading.spec.features},
        days=dict(sorted(days.items())),
        first_replay_day=min((day for day in days if until_day and day >= until_day), default=None),
        n_rows=sum(days.values()),
        n_labelled=(base.n_labelled if base else 0) + sum(tally.labels.values()),
        n_labelled_replay=(base.n_labelled_replay if base else 0) + sum(tally.later_labels.values()),
        n_outside=(base.n_outside if base else 0) + tally.n_outside,
        rejects=dict(Counter(base.rejects if base else {}) + rejects),
        zones=dict(Counter(base.zones if base else {}) + tally.zones),
        unparsable=dict(Counter(base.unparsable if base else {}) + tally.unparsable),
    )


def _clear(root: Path, model: str) -> None:
    """Remove an earlier import, the manifest first: without it nothing reads what is left."""
    (root / "history" / model / "manifest.json").unlink(missing_ok=True)
    for kind in ("history", "replay"):
        shutil.rmtree(root / kind / model, ignore_errors=True)


def _groups(days: Counter[str]) -> Iterator[tuple[date, date]]:
    """Ranges of days, first and last, of about `_GROUP_ROWS` rows each."""
    first, previous, n_rows = "", "", 0
    for day in sorted(days):
        if first and n_rows + days[day] > _GROUP_ROWS:
            yield date.fromisoformat(first), date.fromisoformat(previous)
            first, n_rows = "", 0
        first, previous, n_rows = first or day, day, n_rows + days[day]
    if first:
        yield date.fromisoformat(first), date.fromisoformat(previous)


def _write_days(root: Path, reading: Reading, tally: Tally, staging: Path, classes: list[str], *, merge: bool) -> None:
    spec = reading.spec
    parts = pl.scan_parquet(sorted(staging.glob("*.parquet")))
    for first, last in _groups(tally.days):
        begin = datetime(first.year, first.month, first.day, tzinfo=UTC)
        end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
        rows = parts.filter(pl.col("event_time") >= begin, pl.col("event_time") < end).collect()
        rows = rows.with_columns(label_indices(spec, classes, rows["label"]).alias("label"))
        rows = rows.select(list(row_schema(spec.features))).sort("event_time", "request_id")
        for (day,), of_day in rows.group_by(pl.col("event_time").dt.date()):
            _write_day(root, spec.model, str(day), of_day, until=reading.until, merge=merge)


def _write_day(root: Path, model: str, day: str, rows: pl.DataFrame, *, until: datetime | None, merge: bool) -> None:
    later = pl.lit(False) if until is None else pl.col("event_time") >= until
    both: list[tuple[Kind, pl.DataFrame]] = [("history", rows.filter(~later)), ("replay", rows.filter(later))]
    for kind, of_kind in both:
        path = day_path(root, kind, model, day)
        if merge and path.exists():
            of_kind = pl.concat([pl.read_parquet(path), of_kind])
            of_kind = of_kind.unique("request_id", keep="first").sort("event_time", "request_id")
        if of_kind.height:
            replace_parquet(path, of_kind)


def _write_rejects(
    root: Path, model: str, rejects: list[pl.DataFrame], *, fresh: Sequence[SourceFile], merge: bool
) -> None:
    path = root / "rejects" / f"{model}.parquet"
    frames = list(rejects)
    if merge and path.exists():
        again = [source.name for source in fresh]  # a killed import may have told of them already
        frames.insert(0, pl.read_parquet(path).filter(~pl.col("source").is_in(again)))
    if frames:
        replace_parquet(path, pl.concat(frames))
    else:
        path.unlink(missing_ok=True)
