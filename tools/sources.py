"""Files of rows as teams keep them - parquet or CSV, one file or a directory - read in bounded batches."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from state.errors import InputError

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")
BATCH_ROWS = 131_072
_CSV_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    path: Path
    name: str
    """Relative to the directory, or the file's own name: part of every request id."""
    sha256: str
    encoding: str
    folder_values: dict[str, str]
    """Columns spelled in folder names, `date=2026-01-31`."""

    @property
    def is_parquet(self) -> bool:
        return self.path.name.lower().endswith(PARQUET_SUFFIXES)

    @property
    def decimal_comma(self) -> bool:
        """Whether numbers are written `12,5`: so they are where a semicolon separates the fields."""
        return not self.is_parquet and _delimiter(self) == ";"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    first_row: int
    """Position of the first row in its file, from 0."""
    rows: pl.DataFrame
    n_malformed: int
    """Lines of the file so far that have more or fewer fields than the header."""


def list_sources(path: Path) -> list[SourceFile]:
    """Every data file at `path`, by name, with its digest.

    Raises:
        InputError: nothing there, no readable kind of file, or the same content under two names.
    """
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "Check data.path; it is relative to the spec file"
        raise InputError(f"{path} does not exist", remedy=hint)
    files = sorted(_walk(path)) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"{path} holds no parquet or CSV file", remedy=f"Readable endings: {_endings()}; others are ignored"
        )
    if not path.is_dir() and not path.name.lower().endswith((*PARQUET_SUFFIXES, *CSV_SUFFIXES)):
        raise InputError(
            f"{path} is neither parquet nor CSV", remedy=f"Convert it, or rename it to one of {_endings()}"
        )
    root = path if path.is_dir() else path.parent
    sources = [_describe(file, root) for file in files]
    by_digest: dict[str, SourceFile] = {}
    for source in sources:
        twin = by_digest.setdefault(source.sha256, source)
        if twin is not source:
            raise InputError(
                f"{source.path} has the same content as {twin.path}: every row would count twice",
                remedy="Remove one of the two files",
            )
    return sources


def column_names(source: SourceFile) -> list[str]:
    """The columns of `source`, in order.

    Raises:
        InputError: the file is empty, not what its ending says, or names a column twice or not at all.
    """
    if source.is_parquet:
        try:
            names = list(pq.read_schema(source.path).names)
        except (pa.ArrowInvalid, OSError) as exc:
            raise InputError(f"{source.path} is not a readable parquet file: {exc}", remedy="Write it again") from exc
    else:
        names = _header(source)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(
            f"{source.path} has the column {repeated[0]!r} twice", remedy="Rename one of the two in the file"
        )
    return names + [name for name in source.folder_values if name not in names]


def require_columns(source: SourceFile, wanted: Sequence[tuple[str, str]]) -> None:
    """Check that the file has every wanted (spec field, column).

    Raises:
        InputError: a column is missing; the message lists near names.
    """
    present = column_names(source)
    for where, column in wanted:
        if column in present:
            continue
        folded = [name for name in present if name.casefold() == column.casefold()]
        near = folded or difflib.get_close_matches(column, present, n=3, cutoff=0.5)
        remedy = f"Did you mean {', '.join(near)}?" if near else f"Its columns are {', '.join(present)}"
        raise InputError(f"{source.path} has no column {column!r} ({where})", remedy=remedy)


def read_batches(source: SourceFile, columns: Sequence[str], *, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """The named columns in batches of bounded size; CSV columns stay text.

    Raises:
        InputError: the file breaks off or does not decode.
    """
    inside = [name for name in columns if name not in source.folder_values]
    raw = _parquet_batches(source, inside, batch_rows) if source.is_parquet else _csv_batches(source, inside)
    for batch in raw:
        constants = [pl.lit(source.folder_values[name]).alias(name) for name in columns if name not in inside]
        yield Batch(
            first_row=batch.first_row,
            rows=batch.rows.with_columns(constants).select(columns),
            n_malformed=batch.n_malformed,
        )


def _endings() -> str:
    return ", ".join((*PARQUET_SUFFIXES, *CSV_SUFFIXES))


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(directory).parts)
        if path.is_file() and not hidden and path.name.lower().endswith((*PARQUET_SUFFIXES, *CSV_SUFFIXES)):
            yield path


def _describe(path: Path, root: Path) -> SourceFile:
    relative = path.relative_to(root)
    folders = dict(part.split("=", 1) for part in relative.parts[:-1] if "=" in part)
    is_csv = not path.name.lower().endswith(PARQUET_SUFFIXES)
    hasher = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding = "utf-8"
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
            if is_csv and encoding == "utf-8" and path.suffix.lower() != ".gz":
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    encoding = "latin-1"
    return SourceFile(
        path=path, name=relative.as_posix(), sha256=hasher.hexdigest(), encoding=encoding, folder_values=folders
    )


def _header(source: SourceFile) -> list[str]:
    try:
        with _open_text(source) as stream:
            line = next(csv.reader(stream, delimiter=_delimiter(source)), [])
    except (OSError, UnicodeDecodeError, EOFError) as exc:
        raise InputError(f"{source.path} does not read as text: {exc}", remedy="Write it as UTF-8 CSV") from exc
    if not line:
        raise InputError(f"{source.path} is empty", remedy="The first line must name the columns")
    if any("\0" in name for name in line):
        raise InputError(f"{source.path} holds NUL bytes: it is no text", remedy="Write it as UTF-8 CSV")
    if "" in line:
        # pandas writes its index like this unless it is told not to.
        raise InputError(
            f"{source.path}: column {line.index('') + 1} of the first line has no name",
            remedy="Name it, or leave it out (in pandas: to_csv(..., index=False))",
        )
    return line


def _open_text(source: SourceFile) -> io.TextIOWrapper:
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    if source.path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(source.path, "rb"), encoding=encoding, newline="")
    return source.path.open("r", encoding=encoding, newline="")


def _delimiter(source: SourceFile) -> str:
    with _open_text(source) as stream:
        first = stream.readline(1 << 20)
    return max(",;\t|", key=first.count)


def _parquet_batches(source: SourceFile, columns: Sequence[str], batch_rows: int) -> Iterator[Batch]:
    position = 0
    try:
        with pq.ParquetFile(source.path) as file:
            for record_batch in file.iter_batches(batch_size=batch_rows, columns=list(columns)):
                frame = pl.from_arrow(record_batch)
                if not isinstance(frame, pl.DataFrame):
                    raise InputError(f"{source.path} holds no table", remedy="Write it again as a table of columns")
                yield Batch(first_row=position, rows=frame, n_malformed=0)
                position += frame.height
    except (pa.ArrowInvalid, OSError) as exc:
        raise InputError(f"{source.path} breaks off at row {position}: {exc}", remedy="Write the file again") from exc


def _csv_batches(source: SourceFile, columns: Sequence[str]) -> Iterator[Batch]:
    malformed: list[int | None] = []

    def skip(row: pacsv.InvalidRow) -> str:
        malformed.append(row.number)
        return "skip"

    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
    )
    parse = pacsv.ParseOptions(delimiter=_delimiter(source), newlines_in_values=True, invalid_row_handler=skip)
    read = pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, encoding=source.encoding.replace("-", ""))
    position = 0
    try:
        with (
            pa.input_stream(str(source.path), compression="detect") as stream,
            pacsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
        ):
            for record_batch in reader:
                frame = pl.from_arrow(record_batch)
                if isinstance(frame, pl.DataFrame):
                    yield Batch(first_row=position, rows=frame, n_malformed=len(malformed))
                    position += frame.height
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as exc:
        raise InputError(
            f"{source.path} does not read as CSV after row {position}: {exc}", remedy="Check that line of the file"
        ) from exc
