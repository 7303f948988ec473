from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import pytest

from tools.volume import judge_volume

DAY = timedelta(days=1)
Rows = dict[str, int]


def calendar(start: str, n_blocks: int, *, length: timedelta = DAY) -> list[str]:
    first = datetime.fromisoformat(start)
    times = [first + k * length for k in range(n_blocks)]
    return [at.isoformat() if length % DAY else at.date().isoformat() for at in times]


def weekday(block: str) -> int:
    return date.fromisoformat(block[:10]).weekday()


def kind(block: str, n_rows: int, served: Rows, **more: object) -> str:
    found = judge_volume(block, n_rows, served=served, **more)  # type: ignore[arg-type]
    return found.kind if found is not None else "unknown"


def alarms(rows: Rows, *, length: timedelta = DAY, reference: list[str] | None = None) -> list[str]:
    """Blocks of a live stretch that are called a fault; a fault is no history, as in the loop."""
    served: Rows = {}
    holes: list[str] = []
    found = []
    for block, n_rows in rows.items():
        known = dict(list(served.items())[-max(70, 28 * DAY // length) :])
        said = kind(block, n_rows, known, holes=holes, reference=reference or [], length=length)
        served[block] = n_rows
        if said == "no_rows":
            holes.append(block)
        if said in ("no_rows", "volume"):
            found.append(block)
    return found


def test_a_day_without_rows_is_a_fault_where_rows_always_came() -> None:
    served = dict.fromkeys(calendar("2026-03-02", 28), 300)

    assert kind("2026-03-30", 0, served) == "no_rows"
    assert kind("2026-03-30", 0, {}) == "unknown", "nothing was ever served"
    assert kind("2026-03-03", 0, {"2026-03-02": 300}) == "no_rows", "one day of many rows is enough"


def test_a_weekday_that_the_reference_has_closed_is_closed_from_the_first_week_on() -> None:
    reference = [day for day in calendar("2026-01-05", 56) if weekday(day) < 5]
    live = {day: 300 if weekday(day) < 5 else 0 for day in calendar("2026-03-02", 21)}

    assert alarms(live, reference=reference) == []
    assert alarms(live | {"2026-03-18": 0}, reference=reference) == ["2026-03-18"]


def test_a_weekday_that_closes_later_is_told_twice_and_then_taken_for_what_it_is() -> None:
    live = {day: 0 if weekday(day) == 6 and day > "2026-04-01" else 300 for day in calendar("2026-03-02", 84)}

    assert alarms(live) == ["2026-04-05", "2026-04-12"]


def test_traffic_that_stops_altogether_is_never_taken_for_the_calendar() -> None:
    live = {day: 300 if day < "2026-04-01" else 0 for day in calendar("2026-03-02", 90)}

    assert alarms(live) == [day for day in live if day >= "2026-04-01"]


def test_a_quiet_holiday_within_the_bounds_is_none_and_an_empty_one_is() -> None:
    served = dict.fromkeys(calendar("2026-03-02", 28), 300)

    assert kind("2026-03-30", 61, served) == "usual"
    assert kind("2026-03-30", 59, served) == "volume"
    assert kind("2026-03-30", 1_500, served) == "usual"
    assert kind("2026-03-30", 1_501, served) == "volume"


@pytest.mark.parametrize("mean", [1.0, 3.0, 6.0, 10.0, 25.0])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_low_and_uneven_traffic_raises_about_no_false_alarm(mean: float, spread: float) -> None:
    """Four models of one year each, that remember ten weeks: 1,460 healthy days."""
    found = 0
    for seed in range(4):
        rng = np.random.default_rng([seed, int(mean), int(spread)])
        shape = mean / (spread - 1) if spread > 1 else None
        rate = rng.gamma(shape, mean / shape, 365) if shape else np.full(365, mean)
        days = calendar("2026-01-05", 365 + 60)
        counts = rng.poisson(np.concatenate([rate, rate[:60]]))
        live = {day: int(n) for day, n in zip(days[60:], counts[60:], strict=True)}
        reference = [day for day, n in zip(days[:60], counts[:60], strict=True) if n]
        found += len(alarms(live, reference=reference))

    assert found <= 2


def test_irregular_days_without_rows_are_no_fault() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        days = calendar("2026-01-05", 400)
        rows = {day: int(rng.poisson(200)) if rng.random() < 0.85 else 0 for day in days}
        reference = [day for day in days[:60] if rows[day]]

        assert alarms({day: rows[day] for day in days[60:]}, reference=reference) == []


def test_weekly_and_monthly_rows_have_their_own_blocks() -> None:
    week = 7 * DAY
    weekly = dict.fromkeys(calendar("2026-01-05", 30, length=week), 40)
    assert alarms(weekly, length=week) == []
    assert alarms(weekly | {"2026-06-01": 0}, length=week) == ["2026-06-01"]

    month = 30 * DAY
    first_days = [date(2023 + k // 12, k % 12 + 1, 1) for k in range(96)]
    blocks = calendar("2023-01-02", 95, length=month)
    monthly = {
        block: 50 * sum(block <= day.isoformat() < after for day in first_days)
        for block, after in zip(blocks, [*blocks[1:], "9999"], strict=True)
    }
    assert 0 in monthly.values()
    assert alarms(dict(list(monthly.items())[:-1]), length=month) == []


def test_hours_are_compared_with_the_same_hour_of_the_week() -> None:
    hour = timedelta(hours=1)

    def usual(block: str) -> int:
        return 400 if 8 <= int(block[11:13]) < 20 and weekday(block) < 5 else 0

    reference = [block for block in calendar("2026-01-05", 24 * 28, length=hour) if usual(block)]
    live = {block: usual(block) for block in calendar("2026-02-02", 24 * 21, length=hour)}

    assert alarms(live, length=hour, reference=reference) == []
    assert alarms(live | {"2026-02-18T11:00:00": 0}, length=hour, reference=reference) == ["2026-02-18T11:00:00"]


def test_a_model_that_nobody_asks_any_more_is_closed_and_not_unknown() -> None:
    served = dict.fromkeys(calendar("2026-01-05", 5), 300) | dict.fromkeys(calendar("2026-01-12", 40), 0)

    assert kind("2026-03-01", 0, served) == "closed"
    assert kind("2026-03-01", 300, served) == "unknown"


def test_a_quarantined_day_is_no_gap_of_the_history() -> None:
    days = calendar("2026-01-05", 60)
    served = dict.fromkeys(days, 300)
    reference = [day for day in days if day not in days[20:30]]

    assert kind("2026-03-06", 0, served, reference=reference) == "no_rows"
    assert kind("2026-03-06", 0, {"2026-03-05": 300}, reference=reference) == "closed", "one day in six had none"
