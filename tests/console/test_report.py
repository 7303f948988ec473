"""The HTML report and the data of its charts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from console import charts
from console.report import render_report, write_report
from console.summary import Summary, summarise
from console.summary_types import DriftWindow, FeatureMove, TimelineEntry, TrafficBlock
from state.errors import InputError
from tests.console.replayed import DAY, END, HOSTILE, replayed, tell_story
from tests.tools.control_rows import START

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.outside: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.outside.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Summary]:
    with replayed(tmp_path_factory.mktemp("story")) as it:
        tell_story(it)
        yield summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform, wall_seconds=12.5)


def page(summary: Summary) -> str:
    return render_report(summary, home=Path("work"))


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


def test_the_report_is_one_sound_page_that_needs_nothing_else(summary: Summary) -> None:
    text = page(summary)
    read = Page(text)

    assert read.open == []
    assert read.tags["script"] == read.tags["link"] == read.tags["img"] == 0
    assert read.outside == []
    assert "url(http" not in text
    assert "@import" not in text
    assert [name for name, n in read.ids.items() if n > 1] == []
    assert "default-src 'none'" in text


def test_every_drawing_says_in_words_what_it_shows(summary: Summary) -> None:
    found = drawings(page(summary))

    labels = [drawing.attrib["aria-label"] for drawing in found]
    assert [drawing.attrib["role"] for drawing in found] == ["img"] * 4
    assert [label.split(".")[0] for label in labels] == [
        "roc_auc, mean of the last 7 blocks", "Traffic split", "Drift by feature and window", "Timeline of decisions"
    ]  # fmt: skip
    assert "Last 7 blocks: as served 0." in labels[0]
    assert "Significant in: weight." in labels[2]
    assert all("currentColor" in ElementTree.tostring(drawing, encoding="unicode") for drawing in found)


def test_the_page_holds_the_figures_and_how_to_verify_them(summary: Summary) -> None:
    text = unescape(page(summary))

    for value in (summary.overall.served, summary.overall.never, summary.overall.always):
        assert f"<b>{value:.4f}</b>" in text
    for period in summary.periods:
        assert f"{period.n_rows:,}" in text
        assert f"{period.served:.4f}" in text
    assert "near miss" in text
    assert "promoted as version 2 on 2026-03-17" in text
    assert "ada, 2026-03-21" in text
    assert "steady audit verify --home work\n" in text
    assert f"--key {summary.log.vkey}" in text.replace("'", "")
    assert "Nothing speaks against the log." in text


def test_hostile_text_stays_text(summary: Summary) -> None:
    version = summary.versions[1].model_copy(update={"version": HOSTILE, "ended_by": HOSTILE})
    incident = summary.incidents[0].model_copy(update={"title": HOSTILE, "text": HOSTILE, "resolution": HOSTILE})
    asked = TimelineEntry(index=1, at=START, what="goal", actor=HOSTILE, text=f"somebody asks: {HOSTILE}")
    move = FeatureMove(name=HOSTILE, kind="distribution", statistic=0.4, p_value=0.0, level="major")
    traffic = summary.traffic.model_copy(
        update={"blocks": [TrafficBlock(block="2026-03-02", n_by_version={HOSTILE: 3})], "flags": {HOSTILE: 1}}
    )
    hostile = summary.model_copy(
        update={
            "model": HOSTILE, "owner": HOSTILE, "notes": [HOSTILE], "denials": {HOSTILE: 1}, "traffic": traffic,
            "versions": [summary.versions[0], version], "incidents": [incident], "timeline": [asked, *summary.timeline],
            "drift": [summary.drift[0].model_copy(update={"features": [move]})],
            "challengers": [summary.challengers[0].model_copy(update={"why": HOSTILE})],
            "approvals": [summary.approvals[0].model_copy(update={"reason": HOSTILE, "comment": HOSTILE})],
            "log": summary.log.model_copy(update={"problems": [HOSTILE], "path": HOSTILE}),
        }
    )  # fmt: skip

    text = page(hostile)
    read = Page(text)

    assert "<script" not in text
    assert read.tags["script"] == 0
    assert read.handlers == []
    assert read.open == []
    # In the title, the tables, and in the drawings: traffic's legend, the strip's rows, the marks.
    assert text.count("&lt;script&gt;") > 15
    drawn = "".join("".join(drawing.itertext()) for drawing in drawings(text))
    assert drawn.count(HOSTILE) >= 3


def test_an_empty_summary_says_so_everywhere(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)
        write_report(it.workspace, summary, tmp_path / "report.html")

    text = (tmp_path / "report.html").read_text()
    assert Page(text).open == []
    assert drawings(text) == []
    for said in (
        "No labelled rows yet", "No version has served", "No complete block of traffic", "No incidents",
        "No challenger was compared", "No drift window is full yet", "No faulty days", "No approval was asked for",
        "Nothing was denied", "No decision yet", "no version was ever champion",
    ):  # fmt: skip
        assert said in text


def test_traffic_without_labels_is_drawn_without_a_metric(summary: Summary) -> None:
    blocks = [block.model_copy(update={"served": None, "never": None, "always": None}) for block in summary.blocks]

    text = page(summary.model_copy(update={"blocks": blocks}))

    assert "No labelled rows yet" in text
    assert len(drawings(text)) == 3


def test_the_same_summary_gives_the_same_page(summary: Summary) -> None:
    assert page(summary) == page(summary)


def test_a_log_that_does_not_verify_is_shouted(summary: Summary) -> None:
    broken = summary.log.model_copy(update={"ok": False, "problems": ["record 7 was edited"]})

    text = page(summary.model_copy(update={"log": broken}))

    assert "NOT OK" in text
    assert "The log does NOT verify:" in text
    assert "record 7 was edited" in text


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path, summary: Summary) -> None:
    with replayed(tmp_path) as it, pytest.raises(InputError, match="nowhere"):
        write_report(it.workspace, summary, tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize(
    ("values", "means"),
    [
        pytest.param([1.0, 2.0, 3.0, 6.0], [None, 1.5, 2.0, 11 / 3], id="from-half-of-the-window-on"),
        pytest.param([1.0, None, 3.0, None, None], [None, None, 2.0, None, None], id="unknown-blocks-are-left-out"),
        pytest.param([], [], id="no-blocks"),
    ],
)
def test_a_rolling_mean_is_of_the_known_values_of_its_window(
    values: list[float | None], means: list[float | None]
) -> None:
    assert charts.rolling(values, 3) == pytest.approx(means)


def test_shares_are_of_each_blocks_own_answers() -> None:
    blocks = [
        TrafficBlock(block="2026-03-02", n_by_version={"1": 10}),
        TrafficBlock(block="2026-03-03", n_by_version={"2": 30, "1": 10}),
        TrafficBlock(block="2026-03-04", n_by_version={}),
    ]

    shares = charts.traffic_shares(blocks)

    assert shares.versions == ["1", "2"]
    assert shares.shares == [[100.0, 25.0, 0.0], [0.0, 75.0, 0.0]]
    assert shares.times[1] == datetime(2026, 3, 3, tzinfo=UTC)


def test_the_strip_has_the_most_moved_features_first_and_counts_the_rest() -> None:
    def window(n: int, **statistics: float) -> DriftWindow:
        moves = [
            FeatureMove(name=name, kind="distribution", statistic=value, p_value=0.5, level="none")
            for name, value in statistics.items()
        ]
        start = START + n * timedelta(days=28)
        return DriftWindow(start=start, end=start + timedelta(days=28), level="none", calibrated=True, features=moves)

    strip = charts.drift_strip([window(0, a=0.01, b=0.2, c=0.1), window(1, a=0.3, b=0.02)], max_features=2)

    assert strip.features == ["a", "b"]
    assert strip.statistics == [[0.01, 0.3], [0.2, 0.02]]
    assert strip.n_left_out == 1
    assert strip.windows[0] == "Mar 02 - Mar 30"


def test_decisions_stand_in_their_lanes(summary: Summary) -> None:
    points = charts.decision_lanes(summary.timeline)
    told = {(point.lane, point.entry.what, point.good) for point in points}

    assert {
        ("incidents", "incident opened", False), ("data", "quarantine data", True), ("data", "major drift", False),
        ("challengers", "backtest win", True), ("challengers", "backtest lose", False),
        ("policy and people", "denied", False), ("traffic", "promote", True), ("traffic", "rollback", False),
    } <= told  # fmt: skip


def test_marks_leave_out_the_first_champion(summary: Summary) -> None:
    assert [(mark.at, mark.label, mark.good) for mark in charts.champion_marks(summary)] == [
        (START + 15 * DAY, "version 2 promoted", True),
        (START + 21 * DAY, "version 3 rolled back", False),
    ]
