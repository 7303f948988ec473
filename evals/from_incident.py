"""A recorded incident as a scenario: what the record says is taken over, what it does not say is an assumption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from statistics import median
from typing import Any, TypeAlias, get_args

import yaml

from evals.world.truth import LEVELS
from orchestrator.change import change_of
from orchestrator.diagnosis import Cause
from state import store
from state.errors import InputError
from state.rows import ActionRow, ApprovalRow, BlockRow, IncidentRow, ModelRow, RunRow, SignalRow
from state.spec import ModelSpec
from state.store import Connection
from tools.drift.units import UNITS

Part: TypeAlias = dict[str, Any]
LEAD_DAYS = 14
"""Live days before the change."""
TAIL_DAYS = 3
OPEN_DAYS = 30
"""Days after its begin that an incident without an end is played for."""
MOST_ROWS = 20_000
_KEPT = ("tier", "task", "features", "training", "objective", "gates", "monitoring", "rollout", "freezes", "autonomy")


@dataclass(slots=True, kw_only=True)
class Record:
    """Everything recorded around one incident."""

    incident: IncidentRow
    spec: ModelSpec
    findings: Sequence[Part]
    details: Part
    rows_per_day: int | None
    promoted: bool
    told: bool
    asked: bool
    start: date
    taken: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def day(self, at: date) -> int:
        return max((at - self.start).days, 0)

    @property
    def began(self) -> int:
        return self.day(min(self.days)) if self.days else self.day(change_of(self.spec, self.incident).date())

    @property
    def days(self) -> list[date]:
        """The days that the incident's fault is on."""
        return _dates(self.incident.body.get("days"))


def scenario_from(conn: Connection, incident_id: str) -> str:
    """The YAML text of a scenario for the incident, with comments about its origin.

    Raises:
        InputError: no incident has the id, or a scenario cannot express what happened.
    """
    incident = store.get(conn, IncidentRow, incident_id)
    if incident is None:
        raise InputError(f"incident {incident_id!r} does not exist", remedy="`steady incidents --json` lists the ids")
    record = _read(conn, incident)
    entry = _entry(record)
    return _text(record, _document(record, entry))


def _read(conn: Connection, incident: IncidentRow) -> Record:
    row = store.get(conn, ModelRow, incident.model)
    if row is None:
        raise InputError(
            f"model {incident.model!r} of the incident is not managed here", remedy="Name another incident"
        )
    spec = ModelSpec.model_validate(row.spec)
    signals = [s for s in store.select(conn, SignalRow, model=incident.model) if s.incident_id == incident.id]
    actions = [a for a in store.select(conn, ActionRow, subject_id=incident.id) if a.state == "verified"]
    runs = {run.id for run in store.select(conn, RunRow, subject_id=incident.id)}
    details: Part = {}
    for signal in signals:
        details = {**dict(signal.body), **details}
    counts = [
        int(str(block.body["n_rows"]))
        for block in store.select(conn, BlockRow, model=incident.model)
        if block.topic.startswith("profile/") and block.body.get("n_rows")
    ]
    days = _dates(incident.body.get("days"))
    began = min([change_of(spec, incident).date(), *days])
    return Record(
        incident=incident,
        spec=spec,
        findings=[dict(f) for s in signals for f in _list(s.body.get("findings"))],
        details=details,
        rows_per_day=int(median(counts) * (timedelta(days=1) / spec.monitoring.block)) if counts else None,
        promoted=any(a.kind == "promote" for a in actions),
        told=any(a.kind == "notify" for a in actions),
        asked=any(q.run_id in runs for q in store.select(conn, ApprovalRow, model=incident.model)),
        start=began - timedelta(days=LEAD_DAYS),
    )  # fmt: skip


def _list(value: Any) -> list[Part]:
    return value if isinstance(value, list) else []


def _dates(value: object) -> list[date]:
    return sorted({date.fromisoformat(str(day)[:10]) for day in value}) if isinstance(value, list) else []


def _cannot(record: Record, why: str) -> InputError:
    return InputError(
        f"incident {record.incident.id} ({record.incident.cause}) cannot be expressed as a scenario: {why}",
        remedy="Write one with `steady eval new FILE`; docs/evals.md lists what can be injected",
    )


def _entry(record: Record) -> Part:
    """The injection that the diagnosis speaks of."""
    match record.incident.cause:
        case "data_fault":
            return {**_data_fault(record), **_span(record)}
        case "skew":
            return {**_skew(record), **_span(record)}
        case "label_fault":
            return {**_label_fault(record), **_span(record)}
        case "concept_drift" | "stale_model" | "prior_shift" | "covariate_shift_harmful" | "covariate_shift_harmless":
            return _world(record)
        case "bad_release":
            record.assumed.append("the bad version learned nothing (shuffled labels) and was asked for by an operator")
            return {"day": record.began, "inject": "release", "labels": "shuffled"}
        case "serving_fault":
            record.assumed.append("the champion's server died")
            return {"day": record.began, "inject": "server", "version": "champion", "dead": True}
        case "segment_regression":
            return _segment(record)
        case "insufficient_evidence":
            raise _cannot(record, "the diagnosis found no cause that could be injected")
        case cause:
            raise _cannot(record, f"no injection stands for {cause}")


def _segment(record: Record) -> Part:
    """The turn inside one level; levels of the simulated world stand for those of real data."""
    segment = str(record.incident.body.get("segment") or "")
    name, _, level = segment.partition("=")
    kind = next((f.type for f in record.spec.features if f.name == name), None)
    if kind == "boolean" and level.lower() in ("true", "false"):
        level = level.lower()
    elif kind == "categorical":
        if level not in LEVELS:
            record.assumed.append(f"the level {LEVELS[0]!r} of the simulated world stands for {segment}")
            level = LEVELS[0]
    else:
        raise _cannot(record, f"its segment {segment!r} is no level of a category or a flag")
    record.taken.append(f"the segment {segment}")
    record.assumed.append("inside the segment the concept turned by a quarter turn")
    return {"day": record.began, "inject": "segment", "features": [name], "level": level, "magnitude": 1.0}


def _span(record: Record) -> Part:
    if not record.days:
        record.assumed.append("the fault lasted one day")
        return {"day": record.began, "until_day": record.began + 1}
    record.taken.append("the days of the fault")
    return {"day": record.began, "until_day": record.day(max(record.days)) + 1}


def _data_fault(record: Record) -> Part:
    hard = [f for f in record.findings if f.get("severity", "hard") == "hard"]
    for name in (
        "unit_step",
        "missing_step",
        "spike",
        "missing_column",
        "new_levels",
        "no_rows",
        "repeated",
        "late_rows",
    ):
        found = [f for f in hard if f["kind"] in (name, f"{name}_rows")]
        if not found:
            continue
        features = sorted({str(f["feature"]) for f in found if f.get("feature")})
        record.taken.append(f"the finding `{name}`" + (f" in {', '.join(features)}" if features else ""))
        if name == "unit_step":
            return {"inject": "unit", "features": features, "magnitude": _factor(record, str(found[0]["detail"]))}
        if name == "no_rows":
            return {"inject": "no_rows"}
        inject = {
            "missing_column": "missing", "missing_step": "missing", "new_levels": "new_level", "spike": "skew",
        }.get(name, name)  # fmt: skip
        share = 1.0 if name == "missing_column" else _share(str(found[0].get("detail")))
        return {"inject": inject, **({"features": features} if features else {}), "magnitude": round(share, 4)}
    kinds = ", ".join(sorted({str(f["kind"]) for f in hard})) or "none is recorded"
    raise _cannot(record, f"no injection stands for its findings ({kinds})")


def _share(detail: str) -> float:
    """The share of rows or values that a finding begins with; all of them where it names none."""
    named = re.match(r"([\d.]+)%", detail)
    return float(named[1]) / 100 if named is not None else 1.0


def _skew(record: Record) -> Part:
    numeric = {f.name for f in record.spec.features if f.type == "numeric"}
    features = [str(name) for name in record.details.get("skewed", []) if name in numeric]
    if not features:
        raise _cannot(record, "no numeric feature is recorded as skewed")
    record.taken.append(f"the skewed features: {', '.join(features)}")
    record.assumed.append(
        "a release of the feature view served the mean for a tenth of the keys, and can be taken back"
    )
    return {"inject": "skew", "features": features, "magnitude": 0.1, "release": "kept"}


def _factor(record: Record, detail: str) -> float:
    named = re.search(r"sd that (.+?)(?: \(or .*\))? explains", detail)
    unit = next((u for u in UNITS if named is not None and u.name == named[1]), None)
    if unit is None or unit.offset:
        raise _cannot(record, f"the unit of {detail!r} is no plain factor")
    record.taken.append(f"the factor of {unit.name}")
    return unit.factor


def _label_fault(record: Record) -> Part:
    kinds = {str(f["kind"]) for f in record.findings}
    if "labels_missing" in kinds:
        record.taken.append("labels did not come")
        record.assumed.append("no label came on those days")
        return {"inject": "label_missing", "magnitude": 1.0}
    record.assumed.append("three labels of ten were turned around")
    return {"inject": "label_flip", "magnitude": 0.3}


def _world(record: Record) -> Part:
    cause, details = record.incident.cause, record.details
    start: Part = {"day": record.began}
    if cause == "prior_shift":
        shift = float(details.get("label_rate_shift") or 1.0)
        record.assumed.append("the odds of the label changed by one logit; the record has the direction only")
        return {**start, "inject": "prior", "magnitude": math.copysign(1.0, shift)}
    if cause.startswith("covariate"):
        numeric = {f.name for f in record.spec.features if f.type == "numeric"}
        features = [str(name) for name in details.get("features", []) if name in numeric]
        if not features:
            raise _cannot(record, "no numeric feature is recorded as drifting")
        record.taken.append(f"the features that drift: {', '.join(features)}")
        record.assumed.append("they moved by 1.5 standard deviations")
        return {**start, "inject": "covariate", "features": features, "magnitude": 1.5}
    loss, reference = details.get("loss"), details.get("reference")
    if loss and reference and loss > reference:
        record.taken.append(f"the loss, {loss:.4f} against {reference:.4f}")
        record.assumed.append("the turn of the concept is the relative rise of the loss, between 0.2 and 1")
        magnitude = round(min(max(loss / reference - 1, 0.2), 1.0), 2)
    else:
        record.assumed.append("the concept turned by 0.5 of a quarter turn; no rise of the loss is recorded")
        magnitude = 0.5
    slow = cause == "stale_model"
    if slow:
        record.assumed.append("the model aged over four weeks")
    return {**start, "inject": "concept", "magnitude": magnitude, **({"ramp_days": 28} if slow else {})}


def _document(record: Record, entry: Part) -> Part:
    incident = record.incident
    if incident.cause not in get_args(Cause):
        raise _cannot(record, f"{incident.cause!r} is no cause")
    end = record.day(incident.closed_at.date()) if incident.closed_at else record.began + OPEN_DAYS
    return {
        "id": f"incident-{re.sub(r'[^a-z0-9]+', '-', incident.id.lower()).strip('-')}"[:60].strip("-"),
        "title": incident.title,
        "family": "rollout" if incident.cause in ("bad_release", "serving_fault") else "drift",
        "difficulty": "medium",
        "start": record.start.isoformat(),
        "days": min(max(end, record.began, entry.get("until_day", 0)) + TAIL_DAYS, 1_000),
        "models": [_model(record)],
        "timeline": [entry],
        "people": [{"name": "lead", "roles": ["approver"], "answer": "approve"}],
        "truth": {"cause": [incident.cause]},
        "wanted": list(_wanted(record)),
        "deadline_days": max(end - record.began, 1),
        "twin": False,
    }


def _model(record: Record) -> Part:
    spec = record.spec
    dumped = spec.model_dump(mode="json", include=set(_KEPT), exclude_defaults=True)
    parts = {name: dumped[name] for name in _KEPT if name in dumped}
    if spec.training.kind != "recipe":
        parts.pop("training", None)
        record.assumed.append(f"training of kind `{spec.training.kind}` is a logistic regression here")
        if spec.task == "regression":
            parts["training"] = {"candidates": [{"name": "linear", "estimator": "ridge"}]}
    elif "training" in parts:
        parts["training"].pop("kind", None)
        parts["training"]["kind"] = "recipe"
    parts.setdefault("gates", [])
    record.taken.append(f"of the spec: {', '.join(parts)}, and the label delay")
    rows = min(record.rows_per_day, MOST_ROWS) if record.rows_per_day is not None else 300
    if record.rows_per_day is None:
        record.assumed.append("300 rows a day; none are recorded")
    else:
        record.taken.append(
            f"rows a day: {record.rows_per_day}" + (f", here {rows}" if rows < record.rows_per_day else "")
        )
    delay = math.ceil(spec.data.label.delay / timedelta(days=1))
    return {"name": spec.model, "label_delay_days": delay, "pace": "shipped", "rows_per_day": rows, "spec": parts}


def _wanted(record: Record) -> Iterator[Part]:
    yield {"state": "champion", "version": "newer" if record.promoted else "first"}
    quarantined = _dates(record.incident.body.get("quarantined"))
    if quarantined:
        yield {"state": "quarantined", "days": [record.day(day) for day in quarantined]}
    if record.incident.resolution is not None:
        yield {"state": "incident", "status": "closed", "resolution": [record.incident.resolution], "count": None}
    if record.told:
        yield {"state": "told"}
    if record.asked:
        yield {"state": "asked"}


def _text(record: Record, document: Part) -> str:
    record.taken.append("diagnosis, days, and how it ended: what the crew did then is what is wanted here")
    record.assumed.append("rows, their true coefficients and the first champion are those of the simulated world")
    record.assumed.append("the diagnosis was right, and a person approves what the crew asks")
    told = [f"Made from incident {record.incident.id} of model {record.incident.model}.", "Taken from the record:"]
    told += [f"- {text}" for text in record.taken] + ["Assumed:"] + [f"- {text}" for text in record.assumed]
    head = "".join(f"# {' '.join(line.split())}\n" for line in told)
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
