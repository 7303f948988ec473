"""The flights study as a page: tables in Markdown, curves as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.flights.study_results import ArmsMonth, Backtest, DriftLook, Policy, Quality, Results
from state.spec import ModelSpec
from tools.datastore import replace_bytes

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
NAMES = {
    "frozen": "frozen: January-March, never retrained",
    "always": "always: retrained every week, whatever any test says",
    "rule": "the rule, switched on the day of the win",
    "rolled_out": "the rule, with canary, A/B test and bake",
}
REMARK = (
    "One column was left out after a first run: nobody reports a gust on a calm day, and the quality rules stopped 12 healthy",
    "days because `wind_gust` was empty. The frozen model's AUC by month was the same with it within .01; the rule won on",
    "2013-06-10 and 2013-08-05, and kept 70 % and, with the rollout's weeks, 57 % of the gain.",
)
"""What was changed after the study had been looked at."""
_COLOURS = {"frozen": "#8c2d04", "always": "#969696", "rule": "#2171b5", "rolled_out": "#08306b"}


def write_report(results: Results, spec: ModelSpec, directory: Path) -> None:
    """Write `flights.md` and `flights.svg`; the same results give the same bytes."""
    replace_bytes(directory / "flights.svg", _curves(results))
    replace_bytes(directory / "flights.md", ("\n".join(_page(results, spec)) + "\n").encode())


def _page(results: Results, spec: ModelSpec) -> Iterator[str]:
    yield "# Flights: what to expect, measured before the story"
    yield ""
    yield "Written by `python -m examples.flights.study docs`, from the spec as shipped (`examples/flights/flights.yaml`)."
    yield f"{results.n_rows:,} departures from New York in 2013, {results.n_labelled:,} with a label; late means more than"
    yield "15 minutes at arrival; labels are known 7 days after the event. January to March is history, April to December"
    yield "is live. Every model is fitted on labels known on its day and scored on later rows. No threshold was tuned on it."
    yield ""
    yield from REMARK
    yield ""
    yield "![AUC by month, evidence of a loss, backtests, drift](flights.svg)"
    yield ""
    yield from _expectations(results)
    yield from _policies(results.policies)
    yield from _backtests(results, spec)
    yield from _arms(results)
    yield from _detector(results)
    yield from _drift(results)
    yield from _quality(results)


def _expectations(results: Results) -> Iterator[str]:
    rule, rolled = results.policies["rule"], results.policies["rolled_out"]
    wins = [test.now.date().isoformat() for test in results.backtests if test.verdict == "win"]
    hard, faulty = results.quality.hard, results.quality_fault.hard
    alarm = results.detector.alarm
    major = [look.current for look in results.drift if look.level == "major"]
    yield "## In short"
    yield ""
    yield "What the loop should do:"
    yield f"- The cadence backtest wins on {', '.join(wins) or 'no day'}. Switched at once, the rule keeps {rule.share:.0%} of"
    yield f"  always-retrain's gain with {_times(rule.promotions)} instead of {results.policies['always'].promotions}; with the"
    yield f"  weeks that canary, A/B test and bake take it keeps {rolled.share:.0%} with {_times(rolled.promotions)}."
    stopped = [day for day in faulty if "2013-05-13" <= day <= "2013-05-17"]
    yield f"- The unit fault of 13 to 17 May is stopped by the quality rules on {len(stopped)} of its 5 days."
    yield ""
    yield "What it should not be expected to do:"
    seen = f"it comes on {alarm}" if alarm else "the detector stays silent all year"
    yield f"- Wait for a loss alarm: {seen}."
    yield "  The frozen model's loss stays near its reference while a newer model would be better: a gain that is missed"
    yield "  is no loss, and only the cadence finds it."
    verdicts = ", ".join(arms.verdict for arms in results.adoptions) or "none was run"
    yield f"- Prove superiority in the A/B test. Its verdicts at the horizon: {verdicts}. Two arms of 28 days are too few to"
    yield "  tell; adoption rests on the paired win, and the A/B test is there to see a harm that is large."
    yield f"- Take drift for a reason to retrain: {len(major)} of {len(results.drift)} windows are `major`, for it is another"
    yield "  season. Each may bring a backtest forward; what decides is the backtest."
    yield f"- Stop a day without a reason: with the data as they are, the quality rules stop {_days(hard, {})} of"
    yield f"  {results.quality.n_days}; the reasons stand at the end of this page."
    yield ""


def _policies(policies: dict[str, Policy]) -> Iterator[str]:
    yield "## AUC by month"
    yield ""
    yield from _table(
        ("policy", *MONTHS[3:], "1 - AUC, mean of days", "share of the gain", "promotions"),
        (
            (NAMES[name], *(_short(policy.auc[month]) for month in range(4, 13)), f"{policy.daily_loss:.4f}",
             f"{policy.share:.2f}", str(policy.promotions))
            for name, policy in policies.items()
        ),
    )  # fmt: skip
    yield "Share of the gain: of always-retrain's lower loss against the frozen model, how much a policy keeps."
    yield ""


def _backtests(results: Results, spec: ModelSpec) -> Iterator[str]:
    yield "## Backtests"
    yield ""
    yield f"Every {spec.monitoring.cadence.days} days the recipe is fitted on everything before the newest"
    yield f"{spec.monitoring.backtest.days} labelled days and compared with the champion on them, day by day; it wins at z >="
    yield f"{spec.monitoring.win_z} and a gain of at least {spec.monitoring.min_gain:.0%} of the champion's loss. No verdict:"
    yield "within the first weeks of a champion the recipe has no newer rows to learn from;"
    yield "the next look then comes as soon as it has."
    yield ""
    for title, tests in (("Switched at once", results.backtests), ("With the rollout's weeks", results.rolled_out)):
        yield f"{title}:"
        yield ""
        yield from _table(
            ("day", "compared on", "days", "gain in 1 - AUC", "se", "z", "verdict"),
            (_backtest_row(test) for test in tests),
        )


def _backtest_row(test: Backtest) -> tuple[str, ...]:
    if not test.n_blocks:
        return test.now.date().isoformat(), "-", "0", "-", "-", "-", test.verdict.replace("_", " ")
    return (
        test.now.date().isoformat(), f"{test.start:%d %b} - {test.end:%d %b}", str(test.n_blocks),
        f"{test.difference:+.4f}", f"{test.se:.4f}", f"{test.z:.2f}", test.verdict.replace("_", " "),
    )  # fmt: skip


def _arms(results: Results) -> Iterator[str]:
    yield "## Paired or two arms"
    yield ""
    yield "The frozen model against one fitted on all labels known as the month began; gain in 1 - AUC by day, standard errors"
    yield "robust to autocorrelation. Paired: both score every row. Two arms: half of the flight numbers each."
    yield ""
    yield from _table(
        ("month", "rows", "gain", "se, paired", "z, paired", "se, two arms", "z, two arms", "days won", "AUC, whole month"),
        (
            (MONTHS[arms.month - 1], f"{arms.n_rows:,}", f"{arms.gain:+.4f}", f"{arms.se_paired:.4f}",
             f"{arms.gain / arms.se_paired:.1f}", f"{arms.se_two_arms:.4f}",
             f"{arms.gain_two_arms / arms.se_two_arms:.1f}", f"{arms.days_won:.0%}", f"{arms.auc_gain:+.4f}")
            for arms in results.arms
        ),
    )  # fmt: skip
    if results.adoptions:
        yield "The A/B tests of the rollouts, 50 % each, at the horizon of 28 days (bounds are always valid):"
        yield ""
        yield from _table(
            ("from", "rows", "gain, paired", "gain, two arms", "bounds of the two arms", "verdict"),
            (_adoption_row(arms) for arms in results.adoptions),
        )


def _adoption_row(arms: ArmsMonth) -> tuple[str, ...]:
    bounds = "none" if arms.low is None or arms.high is None else f"{arms.low:+.4f} to {arms.high:+.4f}"
    start = f"{arms.start:%Y-%m-%d}" if arms.start else ""
    return start, f"{arms.n_rows:,}", f"{arms.gain:+.4f}", f"{arms.gain_two_arms:+.4f}", bounds, arms.verdict


def _detector(results: Results) -> Iterator[str]:
    found = results.detector
    top = max(found.path, key=lambda day: found.path[day])
    yield "## Loss of the frozen model"
    yield ""
    yield f"Reference, out of sample over {found.n_blocks} days of January to March: 1 - AUC {found.reference:.4f}, sd of a day"
    yield f"{found.sd:.4f}; healthy up to {found.null:.4f}. The Shiryaev-Roberts e-detector alarms at a log e-value of"
    yield f"{found.threshold:.2f}. Its highest is {found.path[top]:.2f}, on {top}; " + (
        f"the first alarm comes on {found.alarm}." if found.alarm else "it never alarms."
    )
    yield ""


def _drift(results: Results) -> Iterator[str]:
    yield "## Input drift"
    yield ""
    yield "Day-block permutation with effect floors, on windows that do not overlap; `classic` counts the features that"
    yield "PSI > .25 or a row-wise test at 5 % calls drifted. Odd against even days of the same months is no drift at all."
    yield ""
    yield from _table(
        ("reference", "window", "verdict", "moved", "classic"),
        (_drift_row(look) for look in (results.odd_even, *results.drift)),
    )


def _drift_row(look: DriftLook) -> tuple[str, ...]:
    shown = [f"{name} {statistic:.2f}" for name, statistic in list(look.moved.items())[:5]]
    more = f" and {len(look.moved) - 5} more" if len(look.moved) > 5 else ""
    return (
        look.reference, look.current, look.level, (", ".join(shown) + more) or "-",
        f"{look.classic} of {look.n_features}",
    )  # fmt: skip


def _quality(results: Results) -> Iterator[str]:
    yield "## Data quality by day"
    yield ""
    for title, quality in (
        ("The data as they are", results.quality), ("With temp in Celsius from 13 to 17 May", results.quality_fault),
    ):  # fmt: skip
        yield f"{title} ({quality.n_days} days): {_days(quality.hard, quality.warned)}."
        yield ""
        if quality.hard:
            yield from _table(
                ("day", "stopped because of"), ((day, _cut(found)) for day, found in quality.hard.items())
            )


def _days(hard: dict[str, list[str]], warned: dict[str, list[str]]) -> str:
    text = _plural(len(hard), "day")
    if 0 < len(hard) <= 6:
        text += f" ({', '.join(hard)})"
    return text + (f" stopped, {_plural(len(warned), 'day')} with a warning" if warned else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _times(promotions: int) -> str:
    return _plural(promotions, "promotion")


def _cut(found: Sequence[str]) -> str:
    text = "; ".join(found[:3]).replace("|", "/")
    return text + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _short(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _curves(results: Results) -> bytes:
    with mpl.rc_context({"svg.hashsalt": "flights", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 11), layout="constrained")
        top, evidence, tests, faults = figure.subplots(4, 1)
        _plot_auc(top, results)
        _plot_detector(evidence, results)
        _plot_backtests(tests, results)
        _plot_quality(faults, results.quality, results.quality_fault)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def _plot_auc(axes: Axes, results: Results) -> None:
    for name, policy in results.policies.items():
        axes.plot(list(policy.auc), list(policy.auc.values()), marker="o", color=_COLOURS[name], label=NAMES[name])
    axes.set_xticks(range(4, 13), MONTHS[3:])
    axes.set_ylabel("AUC of the month")
    axes.legend(frameon=False, fontsize=7)


def _plot_detector(axes: Axes, results: Results) -> None:
    path = results.detector.path
    shown = [max(value, -5.0) for value in path.values()]
    axes.plot(_dates(path), shown, color=_COLOURS["frozen"])
    axes.axhline(results.detector.threshold, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylabel("log e-value of a loss,\nfrozen model (alarm: dashed)")


def _plot_backtests(axes: Axes, results: Results) -> None:
    for name, tests in (("rule", results.backtests), ("rolled_out", results.rolled_out)):
        judged = [test for test in tests if test.n_blocks]
        days = _dates(test.now.date().isoformat() for test in judged)
        axes.plot(days, [test.z for test in judged], marker="o", color=_COLOURS[name], label=NAMES[name])
    axes.axhline(2.8, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylabel("z of the backtest\n(win: dashed)")
    axes.legend(frameon=False, fontsize=7)


def _plot_quality(axes: Axes, healthy: Quality, faulty: Quality) -> None:
    for height, (quality, colour) in enumerate(((healthy, "#41ab5d"), (faulty, "#cb181d"))):
        for days, marker, size in ((quality.warned, "|", 40), (quality.hard, "s", 22)):
            axes.scatter(_dates(days), [height] * len(days), marker=marker, s=size, c=colour)
    axes.set_yticks([0, 1], ["as it is", "Celsius in May"])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("quality by day: bar a warning, square stopped")


def _dates(days: Iterable[str]) -> npt.NDArray[np.datetime64]:
    return np.array(list(days), dtype="datetime64[D]")
