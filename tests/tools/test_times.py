from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import polars as pl
import pytest

from tools.times import mixed_zones, zones_of


@pytest.mark.parametrize(
    ("values", "zones"),
    [
        pytest.param(["2026-01-01T10:00:00Z", "2026-01-01 10:00 UTC", "2026-01-01T10:00+00"], {"+00:00": 3}, id="utc"),
        pytest.param(
            ["2026-01-01T10:00:00.5+0530", "2026-01-01 10:00:00 -05:00"], {"+05:30": 1, "-05:00": 1}, id="offsets"
        ),
        pytest.param(["2026-01-01 10:00", "2026-01-01", None, " "], {"": 2}, id="none-said"),
        pytest.param(["01-12-2026", "12-2026"], {"": 2}, id="a-year-is-no-offset"),
    ],
)
def test_zones_are_counted_as_they_are_spelled(values: list[str | None], zones: dict[str, int]) -> None:
    assert zones_of(pl.Series("when", values)) == Counter(zones)


def test_timestamps_carry_their_zone_and_numbers_none() -> None:
    moment = [datetime(2026, 1, 1, tzinfo=UTC)]

    assert zones_of(pl.Series(moment)) == {"UTC": 1}
    assert zones_of(pl.Series(moment).dt.replace_time_zone(None)) == {"": 1}
    assert zones_of(pl.Series([1_700_000_000])) == {}


@pytest.mark.parametrize(
    ("zones", "said"),
    [
        pytest.param({"+00:00": 9}, None, id="one"),
        pytest.param({"": 9}, None, id="none"),
        pytest.param({"+01:00": 5, "+02:00": 4}, None, id="winter-and-summer"),
        pytest.param({"+01:00": 5, "": 4}, "and 4 without one, which are read as UTC", id="some-say-none"),
        pytest.param({"UTC": 5, "": 4}, "mixes times with a zone, UTC (5)", id="files-of-two-kinds"),
        pytest.param({"+01:00": 5, "-08:00": 4}, "mixes time zones, +01:00 (5) and -08:00 (4)", id="two-places"),
        pytest.param({"+01:00": 5, "+02:00": 4, "+03:00": 1}, "mixes time zones", id="three"),
    ],
)
def test_what_is_said_of_mixed_zones(zones: dict[str, int], said: str | None) -> None:
    text = mixed_zones("when", Counter(zones))

    assert (text is None) if said is None else (text is not None and said in text and "'when'" in text)
