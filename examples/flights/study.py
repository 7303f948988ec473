"""What the loop should be expected to do on the flights of 2013, and what not: measured before any story is told.

    python -m examples.flights.study DIRECTORY

Everything is offline and causal, with the spec as it is shipped: the policies of retraining, the drift verdicts, the
performance detector, the quality rules with and without the unit fault of May, and the two ways of comparing models.
Writes `flights.md` and `flights.svg`.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from agents.backtest import backtest_possible_from
from agents.base import matured_until
from console.specs import load_spec
from examples.flights.prepare import UNIT_FAULT, prepare, with_fault
from examples.flights.study_report import write_report
from examples.flights.study_results import (
    ArmsMonth,
    Backtest,
    Detector,
    DriftLook,
    Policy,
    Quality,
    Results,
)  # fmt: skip
from examples.flights.year import DAY, END, LIVE, SEED, Floats, Segment, Year, midnight
from state.profile import Profile
from state.spec import ModelSpec
from tools.drift.decision import decide_drift, window_alpha
from tools.drift.longrun import long_run_error
from tools.drift.performance import EDetector, block_loss, reference_from_losses
from tools.drift.statistics import describe
from tools.evaluation import losses_by_block, scored_rows
from tools.experiment import ABTest, paired_comparison
from tools.quality import check_block

log = logging.getLogger("steadyhand.examples.flights.study")
WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ruled:
    backtests: list[Backtest]
    segments: list[Segment]
    adoptions: list[tuple[datetime, datetime, datetime]]
    """(day, champion's cut, new model's cut)."""


def study(year: Year) -> Results:
    """Every number of the report."""
    spec = year.spec
    log.info("policies of retraining")
    at_once = backtest_then_refit(year, rollout=timedelta(0))
    rolled_out = backtest_then_refit(year, rollout=_rollout_length(spec))
    segments = {
        "frozen": [Segment(start=LIVE, end=END, champion=LIVE)],
        "always": retrain_weekly(year),
        "rule": at_once.segments,
        "rolled_out": rolled_out.segments,
    }
    scores = {name: year.policy_scores(chosen) for name, chosen in segments.items()}
    promotions = {name: len({segment.champion for segment in chosen}) - 1 for name, chosen in segments.items()}
    log.info("drift, performance and quality")
    reference = year.reference_profile()
    return Results(
        policies={name: _policy(year, name, scores, promotions[name]) for name in scores},
        backtests=at_once.backtests,
        rolled_out=rolled_out.backtests,
        odd_even=_odd_even(reference),
        drift=_drift_windows(year, reference),
        detector=_detector(year),
        quality=_quality(year, reference, year.frame),
        quality_fault=_quality(year, reference, _faulty(year.frame), until=midnight(UNIT_FAULT.last) + 3 * DAY),
        arms=[_arms_month(year, month) for month in range(5, 13)],
        adoptions=[_ab_after(year, *adoption) for adoption in rolled_out.adoptions],
        n_rows=year.frame.height,
        n_labelled=len(year.rows),
    )


def retrain_weekly(year: Year) -> list[Segment]:
    """A new model every seven days on all labels then known, whatever any test says."""
    delay = year.spec.data.label.delay
    starts = [LIVE + WEEK * n for n in range(1, math.ceil((END - LIVE) / WEEK))]
    cuts = [max(LIVE, matured_until(start, delay)) for start in starts]
    year.fit(cuts)
    served = [(LIVE, LIVE), *zip(starts, cuts, strict=True)]
    ends = [*starts, END]
    return [Segment(start=start, end=end, champion=cut) for (start, cut), end in zip(served, ends, strict=True)]


def backtest_then_refit(year: Year, *, rollout: timedelta) -> _Ruled:
    """The loop's rule on its cadence: backtest, and where it wins refit and switch, at once or after a rollout."""
    spec, champion, now = year.spec, LIVE, LIVE + year.spec.monitoring.cadence
    ruled = _Ruled(backtests=[], segments=[], adoptions=[])
    since = LIVE
    while now < END:
        test = _backtest(year, champion, now)
        ruled.backtests.append(test)
        if test.verdict == "win":
            candidate = matured_until(now, spec.data.label.delay)
            year.fit([candidate])
            ruled.segments.append(Segment(start=since, end=now, champion=champion))
            ruled.adoptions.append((now, champion, candidate))
            since = min(now + rollout, END)
            ruled.segments.extend(_rollout_segments(spec, now, since, champion, candidate))
            champion, now = candidate, since
        possible, due = _possible(spec, champion), now + spec.monitoring.cadence
        # As the loop: where nothing could be said, the next look comes as soon as something can.
        early = test.verdict == "no_verdict" and possible is not None and now < possible < due
        now = possible if early and possible is not None else due
    if since < END:
        ruled.segments.append(Segment(start=since, end=END, champion=champion))
    return ruled


def _possible(spec: ModelSpec, champion: datetime) -> datetime | None:
    """When a backtest against the version trained on rows before `champion` can first say something."""
    return backtest_possible_from(spec, (champion - timedelta(microseconds=1)).isoformat())


def _backtest(year: Year, champion: datetime, now: datetime) -> Backtest:
    spec = year.spec
    possible = _possible(spec, champion)
    end = matured_until(now, spec.data.label.delay)
    start = end - spec.monitoring.backtest
    if possible is None or now < possible:
        return Backtest(now=now, start=start, end=end, n_blocks=0, difference=0.0, se=0.0, z=0.0, verdict="no_verdict")
    theirs, ours = year.losses(champion, start, end), year.losses(start, start, end)
    days = sorted(theirs.keys() & ours.keys())
    paired = paired_comparison(
        [theirs[day] for day in days],
        [ours[day] for day in days],
        win_z=spec.monitoring.win_z,
        min_blocks=spec.monitoring.min_blocks,
        min_gain=spec.monitoring.min_gain,
    )
    log.info("backtest of %s: z %.2f, %s", now.date(), paired.z, paired.verdict)
    return Backtest(
        now=now, start=start, end=end, n_blocks=paired.n_blocks, difference=paired.mean_difference, se=paired.se,
        z=paired.z, verdict=paired.verdict,
    )  # fmt: skip


def _rollout_length(spec: ModelSpec) -> timedelta:
    """Canary steps, A/B test to its horizon, bake."""
    return spec.rollout.dwell * len(spec.rollout.steps) + spec.rollout.ab_test.horizon + spec.rollout.bake


def _rollout_segments(
    spec: ModelSpec, now: datetime, end: datetime, champion: datetime, candidate: datetime
) -> list[Segment]:
    plan = spec.rollout
    stages = [(step, plan.dwell) for step in plan.steps]
    stages += [(plan.ab_test.percent, plan.ab_test.horizon), (100, plan.bake)]
    segments: list[Segment] = []
    for percent, length in stages:
        stop = min(now + length, end)
        if stop > now:
            segments.append(Segment(start=now, end=stop, champion=champion, challenger=candidate, percent=percent))
        now = stop
    return segments


def _policy(year: Year, name: str, scores: dict[str, Floats], promotions: int) -> Policy:
    losses = {other: year.daily_mean(scores[other]) for other in scores}
    gain = losses["frozen"] - losses["always"]
    return Policy(
        auc={month: 1 - loss for month, loss in year.monthly(scores[name]).items()},
        daily_loss=losses[name],
        share=(losses["frozen"] - losses[name]) / gain,
        promotions=promotions,
    )


def _odd_even(reference: Profile) -> DriftLook:
    """Odd against even days of the training months: nothing has drifted."""
    odd = [day for day in reference.blocks if int(day[-2:]) % 2]
    even = [day for day in reference.blocks if not int(day[-2:]) % 2]
    return _look("odd days", "even days", reference.select(odd), reference.select(even), alpha=0.05, seed=SEED)


def _drift_windows(year: Year, reference: Profile) -> list[DriftLook]:
    """The windows that the loop tests, each once, and July against the training months."""
    spec = year.spec.monitoring
    live = year.traffic_profile(reference, year.frame.filter(pl.col("event_time") >= LIVE))
    looks: list[DriftLook] = []
    start = LIVE
    while start + spec.drift_window <= END:
        end = start + spec.drift_window
        current = live.between(start.date().isoformat(), end.date().isoformat())
        alpha = window_alpha(spec.drift_alpha_per_year, spec.drift_window)
        looks.append(
            _look("January-March", f"{start:%d %b} - {end - DAY:%d %b}", reference, current,
                  alpha=alpha, seed=int(start.timestamp()))
        )  # fmt: skip
        start = end
    return looks


def _look(name: str, other: str, reference: Profile, current: Profile, *, alpha: float, seed: int) -> DriftLook:
    verdict = decide_drift(reference, current, alpha=alpha, rng=np.random.default_rng(seed))
    classic = 0
    for feature in describe(reference, current):
        n, m = feature.n_reference, feature.n_current
        # Large-sample Kolmogorov-Smirnov at 5 %, as if rows were independent.
        by_ks = feature.ks is not None and feature.ks > 1.358 * math.sqrt((n + m) / (n * m))
        by_chi = feature.ks is None and feature.chi_square.p_value < 0.05
        classic += int(feature.psi > 0.25 or by_ks or by_chi)
    return DriftLook(
        reference=name, current=other, level=verdict.level, alpha=alpha, classic=classic,
        n_features=len(reference.bins.names), block_days=verdict.block_days,
        moved={f"{f.name} ({f.kind})": f.statistic for f in verdict.drifted},
    )  # fmt: skip


def _detector(year: Year) -> Detector:
    spec = year.spec.monitoring
    reference = reference_from_losses(year.reference_losses(), tolerance=spec.tolerance)
    detector = EDetector(reference=reference, false_alarm_blocks=2 * spec.false_alarm_blocks)
    path = {day: detector.update(loss, block=day) for day, loss in sorted(year.losses(LIVE, LIVE, END).items())}
    alarm = math.log(detector.false_alarm_blocks)
    return Detector(
        reference=reference.mean, null=reference.null, sd=reference.sd, n_blocks=reference.n, threshold=alarm,
        path=path, alarm=next((day for day, log_e in path.items() if log_e >= alarm), None),
    )  # fmt: skip


def _faulty(frame: pl.DataFrame) -> pl.DataFrame:
    renamed = frame.rename({"event_time": "scheduled_departure"})
    changed = with_fault(renamed, UNIT_FAULT).rename({"scheduled_departure": "event_time"})
    return changed.with_columns(pl.col(UNIT_FAULT.column).cast(pl.Float32))


def _quality(year: Year, reference: Profile, frame: pl.DataFrame, *, until: datetime = END) -> Quality:
    """The quality rules day by day, as the loop asks them: faulty days are no history for later ones."""
    live = year.traffic_profile(reference, frame.filter(pl.col("event_time").is_between(LIVE, until, closed="left")))
    good: list[Profile] = []
    hard: dict[str, list[str]] = {}
    warned: dict[str, list[str]] = {}
    for day in live.blocks:
        profile = live.select([day])
        report = check_block(reference, good[-28:], profile)
        for finding in report.findings:
            found = hard if finding.severity == "hard" else warned
            found.setdefault(day, []).append(f"{finding.feature or 'rows'}: {finding.kind} ({finding.detail})")
        if not report.faulty:
            good.append(profile)
    return Quality(n_days=len(live), hard=hard, warned=warned)


def _arms_month(year: Year, month: int) -> ArmsMonth:
    """One month of live rows: the first champion against the recipe fitted on all labels known as the month began."""
    start = datetime(2013, month, 1, tzinfo=UTC)
    end = datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    cut = matured_until(start, year.spec.data.label.delay)
    paired, two_arms = _differences(year, LIVE, cut, start, end)
    rows = year.stretch(start, end)
    theirs, ours = year.scores(LIVE, start, end), year.scores(cut, start, end)
    return ArmsMonth(
        month=month, n_rows=len(rows), n_days=len(paired), gain=float(paired.mean()),
        auc_gain=_auc(rows.label, ours) - _auc(rows.label, theirs),
        se_paired=long_run_error(paired), se_two_arms=long_run_error(two_arms), gain_two_arms=float(two_arms.mean()),
        days_won=float((paired > 0).mean()),
    )  # fmt: skip


def _ab_after(year: Year, now: datetime, champion: datetime, candidate: datetime) -> ArmsMonth:
    """The A/B test of an adoption, to its horizon."""
    plan = year.spec.rollout
    start = now + plan.dwell * len(plan.steps)
    end = min(start + plan.ab_test.horizon, END)
    paired, two_arms = _differences(year, champion, candidate, start, end, key=str(candidate))
    rows = year.stretch(start, end)
    rule = ABTest(margin=plan.ab_test.margin, minimum_samples=plan.ab_test.minimum_samples,
                  horizon_blocks=plan.ab_test.horizon // DAY)  # fmt: skip
    zeros = [0.0] * len(two_arms)
    judged = rule.judge(two_arms.tolist(), zeros, n_samples=len(rows) // 2)
    theirs, ours = year.scores(champion, start, end), year.scores(candidate, start, end)
    return ArmsMonth(
        month=start.month, n_rows=len(rows), n_days=len(paired), gain=float(paired.mean()),
        auc_gain=_auc(rows.label, ours) - _auc(rows.label, theirs),
        se_paired=long_run_error(paired), se_two_arms=long_run_error(two_arms), gain_two_arms=float(two_arms.mean()),
        days_won=float((paired > 0).mean()), start=start, verdict=judged.verdict, low=judged.low, high=judged.high,
    )  # fmt: skip


def _differences(
    year: Year, champion: datetime, challenger: datetime, start: datetime, end: datetime, *, key: str = "arms"
) -> tuple[Floats, Floats]:
    """Champion's daily loss minus the challenger's: both on all rows, and each on the rows of its own arm."""
    theirs, ours = year.losses(champion, start, end), year.losses(challenger, start, end)
    days = sorted(theirs.keys() & ours.keys())
    paired = np.array([theirs[day] - ours[day] for day in days])
    chosen = year.arms(start, end, percent=50, key=key)
    rows = scored_rows(year.stretch(start, end), year.scores(champion, start, end))
    arms: list[dict[str, float]] = []
    for mask, scores in ((~chosen, rows.score), (chosen, year.scores(challenger, start, end))):
        arm = type(rows)(label=rows.label[mask], score=scores[mask], blocks=rows.blocks[mask])
        arms.append({block.block: block.loss for block in losses_by_block(arm, year.spec)})
    common = sorted(arms[0].keys() & arms[1].keys())
    return paired, np.array([arms[0][day] - arms[1][day] for day in common])


def _auc(label: Floats, score: Floats) -> float:
    loss = block_loss("roc_auc", label, score)
    assert loss is not None
    return 1 - loss


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: where the report goes."""
    parser = argparse.ArgumentParser(description="Measure what the loop should do on the flights of 2013.")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    spec = load_spec(Path(__file__).with_name("flights.yaml")).spec
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "data")
        results = study(Year(spec, Path(folder), Path(folder) / "workspace"))
    write_report(results, spec, options.directory)


if __name__ == "__main__":
    main()
