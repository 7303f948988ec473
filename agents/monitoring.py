"""Monitoring: measure blocks of traffic and outcomes, raise signals, and tell people."""

from __future__ import annotations

import base64
import functools
import math
from datetime import datetime
from typing import Any, TypedDict, cast

import numpy as np
import polars as pl
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from agents.base import Move, Situation, Wait, done, failed, proposal, specialist, text_arg
from agents.labels import LabelledBlock, check_labels, labelled_blocks
from agents.oddities import Before, Intake, facts_of, take_stock
from agents.skew import Comparison, compare, find_skew
from agents.traffic import sample_from, sample_json
from state.bins import Bins
from state.errors import ToolUnavailable
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from state.profile import Profile, read_reference
from state.spec import ModelSpec
from tools.drift.performance import block_losses, rows_by
from tools.drift.segments import cells_of, frame_segments, segment_features
from tools.metrics import window
from tools.ports import Platform
from tools.quality import QualityFinding, check_block


class Watch(BaseModel):
    """One look at one model: which block of traffic, and which matured stretch of outcomes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    spec: ModelSpec
    now: AwareDatetime
    champion: str
    traffic_block: str | None
    """Name of the block whose traffic is complete; None where no new one is."""
    traffic_start: AwareDatetime | None = None
    traffic_end: AwareDatetime | None = None
    outcomes_from: AwareDatetime | None = None
    """Start of the newly matured stretch; None where nothing matured."""
    outcomes_until: AwareDatetime | None = None
    matured: dict[str, int] = {}
    """Rows by block that were served in that stretch."""
    labels_before: list[LabelledBlock] = []
    """Earlier matured blocks in whose labels nothing was found, oldest first."""
    previous_profiles: list[str] = []
    """Encoded profiles of the newest good blocks, oldest first."""
    before: Before = Before()
    lasting: list[str] = []
    """Keys of findings that have come so often in a row that they are no fault any more."""
    counters: dict[str, Any] | None = None
    """The champion's service counters at the look before; None where there was none, or no data."""
    stopped: bool = False
    """The system did not run throughout the block: how many rows it holds says nothing."""


class Measured(BaseModel):
    """What one look saw; JSON only."""

    model_config = ConfigDict(extra="forbid")

    n_rows: int = 0
    n_by_version: dict[str, int] = {}
    profile: str | None = None
    findings: list[dict[str, JsonValue]] = []
    intake: Intake = Intake()
    compared: Comparison = Comparison()
    not_judged: list[str] = []
    """What would have been a finding, had the system run throughout the block."""
    losses: dict[str, dict[str, float]] = {}
    """Version -> block -> loss of the objective's metric."""
    segments: dict[str, dict[str, list[float | None]]] = {}
    """Block -> segment -> the champion's loss, rows and loss outside it (`SegmentLoss.cells`)."""
    n_labelled: int = 0
    newest_label: str | None = None
    """Event time of the newest labelled row."""
    labelled: list[LabelledBlock] = []
    """Every block that matured."""
    label_findings: list[dict[str, JsonValue]] = []
    server_ready: bool = False
    counters: dict[str, Any] | None = None
    """The champion's service counters now; None is no data, never health."""
    error_ratio: float | None = None
    """Of the champion's answers since the look before; None where too few were asked for, or nothing is known."""
    n_asked: int = 0


class WatchState(TypedDict, total=False):
    """A look is over within one call and never stored, so its state keeps its types."""

    watch: Watch
    measured: Measured
    signals: list[dict[str, Any]]


def measure(watch: Watch, platform: Platform) -> Measured:
    """Read the traffic block and the matured outcomes of one look."""
    measured = Measured()
    endpoint = platform.servers.get(watch.model, watch.champion)
    measured.server_ready = bool(endpoint and endpoint.ready)
    if watch.traffic_block is not None:
        _measure_traffic(watch, platform, measured)
        _measure_service(watch, platform, measured)
    if watch.outcomes_from is not None:
        _measure_outcomes(watch, platform, measured)
    return measured


def _measure_traffic(watch: Watch, platform: Platform, measured: Measured) -> None:
    assert watch.traffic_start is not None and watch.traffic_end is not None and watch.traffic_block is not None
    frame = platform.outcomes.predictions(watch.model, start=watch.traffic_start, end=watch.traffic_end)
    reference = reference_profile(platform, watch.model, watch.champion)
    measured.n_rows = frame.height
    if frame.height:
        counts = frame.group_by("version").len()
        measured.n_by_version = {str(v): int(n) for v, n in sorted(counts.iter_rows())}
    profile = profile_of(reference.bins, frame, watch.traffic_block)
    measured.profile = encode_profile(profile)
    measured.intake = take_stock(platform.outcomes, frame, watch.spec, watch.traffic_block, watch.before)
    measured.compared = compare(platform.features, frame, watch.spec)
    if not frame.height and not any(watch.before.served.values()):
        return  # nothing has ever been served: there is no block to judge yet
    previous = [decode_profile(reference.bins, text) for text in watch.previous_profiles]
    facts = facts_of(watch.before, measured.intake, watch.spec.monitoring.block, frame)
    report = check_block(reference, previous, profile, batch=facts)
    found = [finding_json(finding) for finding in report.findings] + _retyped(frame)
    passed_over = [f for f in found if watch.stopped and f["kind"] in OF_VOLUME]
    measured.findings = [_as_lasting(f, watch.lasting) for f in found if f not in passed_over]
    measured.not_judged = [sentence(f) for f in passed_over]


def _measure_service(watch: Watch, platform: Platform, measured: Measured) -> None:
    """What the proxy counted of the champion's answers since the last look. Metrics that do not answer are no data."""
    try:
        sample = platform.metrics.sample(watch.model, watch.champion)
    except ToolUnavailable:
        return
    if sample is None:
        return
    measured.counters = dict(sample_json(sample))
    seen = window(sample_from(watch.counters), sample) if watch.counters is not None else None
    if seen is not None and seen.n_requests >= MIN_REQUESTS and math.isfinite(seen.error_ratio):
        measured.error_ratio, measured.n_asked = seen.error_ratio, seen.n_requests


MIN_REQUESTS = 30
"""Requests since the last look from which on their errors say something of the server."""
MAX_ERROR_RATIO = 0.05
"""Share of errors among the champion's answers from which on its server is at fault."""
OF_VOLUME = ("volume", "no_rows")
"""Kinds of findings about how many rows there are: a server that does not run explains them by itself."""
MAY_LAST = frozenset({"missing_step", "new_levels", "spike"})
"""Kinds of findings that are faults because they are sudden; whatever contradicts the contract never becomes normal.
Row counts are not among them: every block counts in the calendar, so that a lasting one explains itself within days."""
RETYPED_SHARE = 0.05
"""Share of a block's rows whose value could not be read as its type, from which on the column has been retyped."""


def _retyped(frame: pl.DataFrame) -> list[dict[str, JsonValue]]:
    """Columns that arrived as another type: the server answered and flagged them, and recorded them as missing."""
    if "flags" not in frame.columns or not frame["flags"].list.len().sum():
        return []
    flags = frame.select(pl.col("flags").explode().drop_nulls()).to_series()
    unreadable = flags.filter(flags.str.starts_with("unparsable:")).value_counts().sort("flags")
    return [
        {
            "kind": "retyped",
            "feature": str(flag).partition(":")[2],
            "severity": "hard",
            "detail": f"{n / frame.height:.1%} of rows hold a value that is not of the declared type",
        }
        for flag, n in unreadable.iter_rows()
        if n / frame.height >= RETYPED_SHARE
    ]


def finding_json(finding: QualityFinding) -> dict[str, JsonValue]:
    return {
        "kind": finding.kind,
        "feature": finding.feature,
        "severity": finding.severity,
        "detail": finding.detail,
    }


def finding_key(finding: dict[str, JsonValue]) -> str:
    """What makes two findings of different blocks the same one."""
    return f"{finding['kind']}/{finding['feature'] or ''}"


def _as_lasting(finding: dict[str, JsonValue], lasting: list[str]) -> dict[str, JsonValue]:
    """The finding, with severity `lasting` where it was hard and is the new normal."""
    is_normal = finding["severity"] == "hard" and finding["kind"] in MAY_LAST and finding_key(finding) in lasting
    return {**finding, "severity": "lasting"} if is_normal else finding


def sentence(finding: dict[str, JsonValue]) -> str:
    """A finding in words, with the feature it is about."""
    return f"{finding['feature']}: {finding['detail']}" if finding["feature"] else str(finding["detail"])


def _measure_outcomes(watch: Watch, platform: Platform, measured: Measured) -> None:
    assert watch.outcomes_from is not None and watch.outcomes_until is not None
    spec = watch.spec
    frame = platform.outcomes.labelled(
        watch.model, start=watch.outcomes_from, end=watch.outcomes_until, as_of=watch.now
    )
    matured = dict(watch.matured)
    if watch.traffic_end is not None and watch.traffic_end <= watch.outcomes_until and not watch.stopped:
        matured[str(watch.traffic_block)] = measured.n_rows  # labels that come at once mature with their traffic
    measured.labelled = labelled_blocks(frame, spec, matured)
    measured.label_findings = check_labels(measured.labelled, watch.labels_before, spec)
    if not frame.height:
        return
    measured.n_labelled = frame.height
    newest = frame["event_time"].max()
    measured.newest_label = newest.isoformat() if isinstance(newest, datetime) else None
    threshold = getattr(spec.serving, "decision_threshold", 0.5)
    for version, part in rows_by(frame, frame["version"]).items():
        losses = block_losses(spec.objective.metric, part, block=spec.monitoring.block, threshold=threshold)
        measured.losses[version] = losses
        if version == watch.champion:
            inside = frame_segments(
                spec.objective.metric, part, block=spec.monitoring.block, features=segment_features(spec),
                threshold=threshold,
            )  # fmt: skip
            measured.segments = cells_of(inside)


def judge(watch: Watch, measured: Measured) -> list[dict[str, JsonValue]]:
    """Symptoms of this look that stand by themselves; losses are judged over time, by the detector's state."""
    signals: list[dict[str, JsonValue]] = []
    hard = [f for f in measured.findings if f["severity"] == "hard"]
    skew = find_skew(measured.compared, watch.before.compared)
    if skew is not None:
        # What the online store serves wrongly needs no other explanation upstream.
        about = [f for f in measured.findings if f["feature"] in skew["skewed"] and f["severity"] == "hard"]
        hard = [f for f in hard if f not in about]
        signals.append({**skew, "block": watch.traffic_block, "findings": cast(JsonValue, about)})
    if not measured.server_ready:
        hard = [f for f in hard if f["kind"] not in OF_VOLUME]
    if hard:
        text = "; ".join(sentence(f) for f in hard[:4])
        signals.append(
            {"name": "data_fault", "text": text, "block": watch.traffic_block, "findings": cast(JsonValue, hard)}
        )
        if {f["kind"] for f in hard} == {"late_rows"}:
            # The block's own rows are sound: spoilt are the blocks that the late ones were added to.
            signals[-1] |= {"block": None, "blocks": [*measured.intake.spoilt()]}
    wrong = [f for f in measured.label_findings if f["severity"] == "hard"]
    if wrong:
        text = "; ".join(sentence(f) for f in wrong[:4])
        blocks = [*dict.fromkeys(f["block"] for f in wrong)]
        signals.append({"name": "label_fault", "text": text, "blocks": blocks, "findings": cast(JsonValue, wrong)})
    if not measured.server_ready:
        signals.append({"name": "serving_fault", "text": f"version {watch.champion} does not answer its health check"})
    elif measured.error_ratio is not None and measured.error_ratio > MAX_ERROR_RATIO:
        text = f"{measured.error_ratio:.1%} of the {measured.n_asked} answers of version {watch.champion} are errors"
        signals.append({"name": "serving_fault", "text": text, "error_ratio": measured.error_ratio})
    return signals


def _measure_node(state: WatchState, runtime: Runtime[Platform]) -> WatchState:
    return {"measured": measure(state["watch"], runtime.context)}


def _judge_node(state: WatchState) -> WatchState:
    return {"signals": judge(state["watch"], state["measured"])}


def _watch_graph() -> CompiledStateGraph[WatchState, Platform, WatchState, WatchState]:
    graph = StateGraph(WatchState, context_schema=Platform)
    graph.add_node("measure", _measure_node)
    graph.add_node("judge", _judge_node)
    graph.add_edge(START, "measure")
    graph.add_edge("measure", "judge")
    graph.add_edge("judge", END)
    return graph.compile(name="monitoring.watch")


WATCH = _watch_graph()


def look(watch: Watch, platform: Platform) -> tuple[Measured, list[dict[str, Any]]]:
    """One look through the monitoring subgraph."""
    state = WATCH.invoke({"watch": watch}, context=platform)
    return state["measured"], list(state["signals"])


def reference_profile(platform: Platform, model: str, version: str) -> Profile:
    """The reference that the version was packaged with."""
    return read_reference((platform.registry.package(model, version) / "profile.bin").read_bytes())


def profile_of(bins: Bins, frame: pl.DataFrame, block: str) -> Profile:
    """Counts of the recorded features of one block."""
    columns = {name: frame[name].to_numpy() if frame[name].dtype.is_numeric() else frame[name].to_list()
               for name in bins.names if name in frame.columns}  # fmt: skip
    if not frame.height:
        return Profile(bins=bins, blocks=(block,), counts=np.zeros((1, bins.width), dtype=np.int64))
    return Profile.count(bins, columns, block)


def encode_profile(profile: Profile) -> str:
    return base64.b64encode(profile.to_bytes()).decode()


@functools.lru_cache(maxsize=128)
def decode_profile(bins: Bins, text: str) -> Profile:
    """The profile that `encode_profile` wrote. Every look reads the newest 28 again, so they are kept."""
    return Profile.from_bytes(bins, base64.b64decode(text))


def read(situation: Situation, platform: Platform) -> dict[str, Any]:  # noqa: ARG001 - the specialist's signature
    return {}


def judge_step(situation: Situation, reading: dict[str, Any]) -> Move:  # noqa: ARG001 - the specialist's signature
    """Telling people, holding and resuming need nothing but the situation."""
    match situation.step:
        case "notify":
            text = f"{situation.cause.replace('_', ' ')}: {situation.facts.get('story', 'see `steady incidents`')}"
            args: dict[str, JsonValue] = {"topic": situation.cause, "to": situation.spec.owner, "text": str(text)}
            return proposal(
                situation, "monitoring", args, f"{situation.spec.owner} owns {situation.model} and must know"
            )
        case "hold" | "resume" | "accept_drift":
            args = {"cause": situation.cause, "after": situation.last_traffic_key}
            return proposal(situation, "monitoring", args, f"{situation.step} asked for by {situation.subject_id}")
        case _:
            return Wait(until=None, waits_for=f"the monitoring agent has no move for {situation.step}")


def begun(intent: CommittedIntent, platform: Platform) -> bool:  # noqa: ARG001 - every agent answers this question
    """A message cannot be looked up: one that may have been lost is said again, under the same key."""
    return False


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Tell somebody; holding and resuming change our own state, which the loop writes with the verification."""
    match intent.kind:
        case "notify":
            delivered = platform.notifier.send(
                title=f"{intent.model}: {text_arg(intent, 'topic')}", text=text_arg(intent, "text"), key=intent.key
            )
            return done({"delivered": delivered, "to": text_arg(intent, "to")})
        case "hold" | "resume":
            return done({"held": intent.kind == "hold"})
        case _:
            return failed(f"the monitoring agent cannot carry out {intent.kind}")


GRAPH = specialist("monitoring", read=read, judge=judge_step)
