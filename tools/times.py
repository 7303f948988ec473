"""Event times from whatever a column holds: timestamps, dates, text in the usual spellings, epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

EVENT_TIME = pl.Datetime("us", "UTC")
_HOUR = 60
_ZONE = r"\d:\d\d(?:[.,]\d+)?\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$"
"""What a text says of its zone, behind a time of day: a date may well end in `-2026`."""
FIRST_YEAR, LAST_YEAR = 1900, 2200
_ISO_CLOCKS = ("%H:%M:%S%.f", "%H:%M:%S%.f%#z", "%H:%M", "%H:%M%#z")
_CLOCKS = ("%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p")


def _with_clocks(date: str, clocks: Sequence[str] = _CLOCKS) -> tuple[str, ...]:
    return (date, *(f"{date} {clock}" for clock in clocks))


TEXT_FAMILIES: dict[str, tuple[str, ...]] = {
    "iso": _with_clocks("%Y-%m-%d", _ISO_CLOCKS),
    "year/month/day": (*_with_clocks("%Y/%m/%d"), *_with_clocks("%Y.%m.%d")),
    "month/day/year": (*_with_clocks("%m/%d/%Y"), *_with_clocks("%m-%d-%Y"), *_with_clocks("%m/%d/%y")),
    "day/month/year": (
        *_with_clocks("%d/%m/%Y"),
        *_with_clocks("%d.%m.%Y"),
        *_with_clocks("%d-%m-%Y"),
        *_with_clocks("%d/%m/%y"),
    ),
    "day month-name year": (*_with_clocks("%d-%B-%Y"), *_with_clocks("%d %B %Y"), *_with_clocks("%d-%B-%y")),
    "month-name day year": (*_with_clocks("%B %d %Y"), *_with_clocks("%a %B %d %Y")),
    "year-month": ("%Y-%m-%d!", "%Y/%m-%d!"),
    "month year": ("%B %Y-%d!", "%B-%Y-%d!", "%m/%Y-%d!"),
}
"""Family -> formats; one family reads a whole column. A trailing `!` marks a month without its day."""

_EPOCHS: dict[str, tuple[float, float, int]] = {
    "epoch seconds": (1e8, 1e11, 1_000_000),
    "epoch milliseconds": (1e11, 1e14, 1_000),
    "epoch microseconds": (1e14, 1e17, 1),
    "epoch nanoseconds": (1e17, 1e20, 0),
}
"""Name -> smallest and largest value, and microseconds a unit (0: a thousandth)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFormat:
    """How one column spells its times."""

    name: str
    parsed_ratio: float
    """Share of the non-empty sample that it reads."""
    ambiguous: str = ""
    """Another reading that fits the sample equally well."""


def detect_time_format(sample: pl.Series) -> TimeFormat | None:
    """The reading that fits most of `sample`, or None where none fits half of it.

    Where day/month/year and month/day/year fit alike, the one under which the rows are better sorted wins.
    """
    values = sample.drop_nulls()
    if values.dtype.is_temporal():
        return TimeFormat(name="timestamp", parsed_ratio=1.0) if values.dtype != pl.Duration else None
    if values.dtype.is_(pl.String):
        values = values.str.strip_chars()
        values = values.filter(values != "")
    if not len(values) or values.dtype == pl.Boolean or values.dtype.is_nested():
        return None
    few = values.gather_every(max(1, len(values) // 200))
    fitting = [name for name in _readings(values) if parse_times(few, name).null_count() < len(few)]
    ratios = {name: _parsed_ratio(values, name) for name in fitting}
    best = max(ratios.values(), default=0.0)
    if best < 0.5:
        return None
    finalists = [name for name, ratio in ratios.items() if ratio == best]
    name = min(finalists, key=lambda reading: _inversions(parse_times(values, reading)))
    others = [reading for reading in finalists if reading != name]
    return TimeFormat(name=name, parsed_ratio=best, ambiguous=", ".join(others))


def parse_times(values: pl.Series, reading: str) -> pl.Series:
    """`values` as UTC microseconds under `reading`; null where it does not fit. A naive time is taken as UTC."""
    name = values.name
    if values.dtype.is_temporal():
        times = _timestamps(values)
    elif reading in _EPOCHS:
        times = _epochs(values, reading)
    elif reading in TEXT_FAMILIES:
        times = _texts(_as_text(values), TEXT_FAMILIES[reading])
    else:
        times = _compact(values, reading)
    years = times.dt.year()
    # A two-digit year read as the year 13 is no time, and neither is a sentinel such as 9999-12-31.
    sane = (years >= FIRST_YEAR) & (years <= LAST_YEAR)
    return pl.select(pl.when(sane).then(times).alias(name)).to_series()


def zones_of(values: pl.Series) -> Counter[str]:
    """How many times of a column say which zone: `+02:00`; `""` for those that say none. Numbers say nothing."""
    if isinstance(values.dtype, pl.Datetime) or values.dtype == pl.Date:
        zone = getattr(values.dtype, "time_zone", None)
        return Counter({str(zone or ""): len(values) - values.null_count()})
    if not values.dtype.is_(pl.String):
        return Counter()
    text = values.drop_nulls().str.strip_chars()
    found = text.filter(text != "").str.extract(_ZONE, 1).fill_null("").value_counts()
    return sum((Counter({_zone(zone): n}) for zone, n in found.iter_rows()), Counter[str]())


def mixed_zones(column: str, zones: Counter[str]) -> str | None:
    """What to say of a column whose times are of several zones; None where they are of one.

    Two offsets an hour apart are one zone in winter and in summer.
    """
    named = {zone: n for zone, n in zones.items() if zone and n}
    offsets = sorted(_minutes(zone) for zone in named if zone[0] in "+-")
    is_one = len(named) < 2 or (len(offsets) == len(named) == 2 and offsets[1] - offsets[0] == _HOUR)
    shown = " and ".join(f"{zone} ({n})" for zone, n in sorted(named.items(), key=lambda pair: (-pair[1], pair[0]))[:4])
    if zones[""] and named:
        return (
            f"column {column!r} mixes times with a zone, {shown}, and {zones['']} without one, which are read as UTC; "
            "if they are local times, write their zone too"
        )
    if is_one:
        return None
    return f"column {column!r} mixes time zones, {shown}; all are turned into UTC, and a day is a day of UTC"


def _zone(text: str) -> str:
    """`+0200`, `+02` and `Z` as `+02:00` and `+00:00`."""
    if text[:1] not in ("+", "-"):
        return "+00:00" if text else ""
    digits = text[1:].replace(":", "").ljust(4, "0")
    sign = "+" if digits == "0000" else text[0]
    return f"{sign}{digits[:2]}:{digits[2:]}"


def _minutes(zone: str) -> int:
    size = int(zone[1:3]) * _HOUR + int(zone[4:])
    return -size if zone[0] == "-" else size


def _readings(values: pl.Series) -> Iterable[str]:
    if values.dtype.is_numeric():
        return [*_EPOCHS, "yyyymmdd", "yyyymm", "yyyy"]
    digits = values.str.contains(r"^\d+(\.\d+)?$").mean()
    if isinstance(digits, float) and digits > 0.5:
        return [*_EPOCHS, "yyyymmdd", "yyyymm", "yyyy"]
    return TEXT_FAMILIES


def _parsed_ratio(values: pl.Series, reading: str) -> float:
    return 1.0 - parse_times(values, reading).null_count() / len(values)


def _inversions(times: pl.Series) -> int:
    """Steps that go against the column's own direction."""
    steps = times.drop_nulls().dt.epoch("us").diff().drop_nulls()
    falling, rising = int((steps < 0).sum()), int((steps > 0).sum())
    return min(falling, rising)


def _timestamps(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is not None:
        return values.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    return values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _epochs(values: pl.Series, reading: str) -> pl.Series:
    low, high, scale = _EPOCHS[reading]
    numbers = values.cast(pl.Float64, strict=False) if not values.dtype.is_integer() else values
    fitting = pl.select(pl.when((numbers >= low) & (numbers < high)).then(numbers)).to_series()
    micros = fitting // 1_000 if scale == 0 else fitting * scale
    return micros.cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _compact(values: pl.Series, reading: str) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    whole = pl.select(pl.when(numbers == numbers.floor()).then(numbers)).to_series()
    digits = whole.cast(pl.Int64, strict=False).cast(pl.String)
    length, suffix = {"yyyymmdd": (8, ""), "yyyymm": (6, "01"), "yyyy": (4, "0101")}[reading]
    fitting = pl.select(pl.when(digits.str.len_bytes() == length).then(digits + pl.lit(suffix))).to_series()
    return fitting.str.to_datetime("%Y%m%d", time_unit="us", time_zone="UTC", strict=False)


def _as_text(values: pl.Series) -> pl.Series:
    text = values.cast(pl.String).str.strip_chars()
    text = text.str.replace(r"^(\d{4}-\d{2}-\d{2})[T_ ]+(\d)", "${1} ${2}").str.replace(r"\s*(Z|UTC|GMT)$", "+00:00")
    text = text.str.replace(r"(\d) ([+-]\d\d:?\d\d)$", "${1}${2}")
    return text.str.replace_all(",", " ").str.replace_all(r"\s+", " ")


def _texts(text: pl.Series, formats: Sequence[str]) -> pl.Series:
    found = pl.Series(text.name, [None] * len(text), dtype=EVENT_TIME)
    for form in formats:
        if not found.null_count():
            break
        source = text + "-01" if form.endswith("!") else text
        read = source.str.to_datetime(form.rstrip("!"), time_unit="us", time_zone="UTC", strict=False)
        plausible = read.dt.year().is_between(FIRST_YEAR, LAST_YEAR)
        found = pl.select(pl.coalesce(found, pl.when(plausible).then(read))).to_series()
    return found.alias(text.name)
