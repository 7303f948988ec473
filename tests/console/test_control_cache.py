"""The controls are measured once: again only where something that they rest on has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from console.summary import Summary, summarise
from tests.console.replayed import DAY, END, Replayed, replayed, tell_story
from tests.tools.control_rows import START


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Replayed]:
    with replayed(tmp_path) as it:
        tell_story(it)
        yield it


def measured(it: Replayed, *, end: Any = END) -> tuple[Summary, list[str]]:
    said: list[str] = []
    summary = summarise(it.workspace, "parcels", start=START, end=end, platform=it.platform, progress=said.append)
    return summary, said


def fitted(said: list[str]) -> bool:
    return any("refitting" in text for text in said)


def test_a_second_summary_of_the_same_replay_refits_nothing_and_says_the_same(it: Replayed) -> None:
    first, said = measured(it)
    assert fitted(said)
    second, said = measured(it)
    assert not fitted(said)
    assert any("as measured before" in text for text in said)
    for part in ("overall", "gain_kept", "periods", "versions", "blocks", "controls"):
        assert getattr(second, part) == getattr(first, part), part


def new_labels(it: Replayed) -> None:
    rows = it.live().head(20).select("request_id", pl.lit(1.0).alias("label"), pl.lit(END - DAY).alias("available_at"))
    it.outcomes.record("parcels", rows, key="restated")


def another_package(it: Replayed) -> None:
    it.registry.folders["1"] = it.registry.folders["3"]


def other_bad_days(it: Replayed) -> None:
    it.outcomes.quarantine("parcels", [(START + 3 * DAY).date().isoformat()], reason="by hand", key="hand")


def another_cadence(it: Replayed) -> None:
    monitoring = it.spec.monitoring.model_copy(update={"cadence": timedelta(days=5)})
    it.platform.specs["parcels"] = it.spec.model_copy(update={"monitoring": monitoring})  # type: ignore[index]


@pytest.mark.parametrize("change", [new_labels, another_package, other_bad_days, another_cadence])
def test_whatever_they_rest_on_makes_them_be_measured_anew(it: Replayed, change: Callable[[Replayed], None]) -> None:
    measured(it)
    change(it)
    _, said = measured(it)
    assert fitted(said)
    assert not any("as measured before" in text for text in said)


def test_another_window_is_measured_by_itself_and_only_the_newest_is_kept(it: Replayed) -> None:
    measured(it)
    _, said = measured(it, end=END - 7 * DAY)
    assert fitted(said)
    assert len(list((it.workspace.home / "controls" / "parcels").iterdir())) == 1


def test_a_damaged_file_is_measured_anew(it: Replayed) -> None:
    first, _ = measured(it)
    [kept] = (it.workspace.home / "controls" / "parcels").iterdir()
    for content in (b"", b"nonsense", kept.read_bytes()[:-200]):
        kept.write_bytes(content)
        again, said = measured(it)
        assert fitted(said)
        assert again.overall == first.overall
