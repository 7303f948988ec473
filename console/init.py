"""`steady init FILE`: a commented model spec, proposed from the data and ready to be read by its owner."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml

from console.specs import LoadedSpec, load_spec
from state.errors import InputError
from state.spec import LOWER_IS_BETTER, Metric, Monitoring
from tools.columns import said
from tools.datastore import replace_bytes
from tools.experiment import needed_z
from tools.inspect import Inspection, inspect_file
from tools.labels import LabelProposal
from tools.rhythm import Rhythm

_PLAIN = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_YAML_WORDS = frozenset("y n yes no on off true false null nan inf".split())  # noqa: SIM905 - reads as the words it is
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult:
    spec: LoadedSpec
    """As `steady spec check` reads the written file."""
    inspection: Inspection
    text: str


def init_spec(
    file: Path,
    *,
    out: Path | None = None,
    model: str | None = None,
    owner: str = "unassigned",
    label: str | None = None,
    time: str | None = None,
    metric: Metric | None = None,
    entity: Sequence[str] | None = None,
    overwrite: bool = False,
) -> InitResult:
    """Write a spec for the rows in `file` to `out`, by default `<model>.yaml` in the working directory.

    Raises:
        InputError: the file cannot be read, no label or time can be told (names the flag to give), or `out` exists.
    """
    name = model or _model_name(file)
    target = out or Path(f"{name}.yaml")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already", remedy="Give another file with --out, or --force to replace it")
    inspection = inspect_file(file, label=label, time=time, metric=metric, entity=entity)
    data_path = os.path.relpath(file.resolve(), target.resolve().parent)
    text = spec_text(inspection, model=name, owner=owner, data_path=data_path)
    with tempfile.TemporaryDirectory() as folder:
        # The draft is checked before anything is written: what `init` leaves behind always passes the check.
        draft = Path(folder) / target.name
        draft.write_text(text, encoding="utf-8")
        load_spec(draft)
    replace_bytes(target, text.encode())
    return InitResult(spec=load_spec(target), inspection=inspection, text=text)


def spec_text(inspection: Inspection, *, model: str, owner: str, data_path: str) -> str:
    """The YAML of a spec, with a comment beside everything that was proposed."""
    sections = (
        _head(inspection, model, owner),
        _data(inspection, data_path),
        _features(inspection),
        _training(inspection),
        _goals(inspection),
        _monitoring(inspection.rhythm),
        _rollout(inspection),
    )
    return "\n".join(line for section in sections for line in [*section, ""]).rstrip() + "\n"


def _head(found: Inspection, model: str, owner: str) -> Iterator[str]:
    rhythm = found.rhythm
    yield f"# Proposed from {found.n_rows} rows, {rhythm.first:%Y-%m-%d} to {rhythm.last:%Y-%m-%d}" + (
        f" ({found.n_sampled} of them were looked at)." if found.n_sampled < found.n_rows else "."
    )
    yield "# Read it before use: a comment beside a value says why it is there. Check it with `steady spec check`."
    yield f"model: {_yaml(model)}"
    yield f"owner: {_yaml(owner)} # who is told and asked"
    yield "tier: standard # low, standard or critical: stricter policy the higher it is"
    yield f"task: {found.label.task} # {_task_reason(found)}"
    yield "# affected, if a prediction causes or hides its outcome (a blocked payment never shows its label)"
    yield "outcomes: independent"


def _task_reason(found: Inspection) -> str:
    label = found.label
    if label.task == "regression":
        return f"{said(label.column)} is a number"
    shown = ", ".join(said(name, limit=20) for name in label.classes[:5])
    more = f" and {len(label.classes) - 5} more" if len(label.classes) > 5 else ""
    return f"{said(label.column)} is one of {shown}{more}"


def _data(found: Inspection, data_path: str) -> Iterator[str]:
    label = found.label
    yield "data:"
    yield "  kind: files"
    yield f"  path: {_yaml(data_path)}"
    yield f"  time: {_yaml(found.time.name)} # {_time_reason(found)}"
    yield f"  entity: [{', '.join(_yaml(name) for name in found.entity)}] # {_entity_reason(found)}"
    yield "  label:"
    others = f"; others could be {', '.join(said(name) for name in label.others)}" if label.others else ""
    yield f"    column: {_yaml(label.column)} # {label.why}{others}"
    if label.task == "binary":
        ratio = f", {label.positive_ratio:.1%} of the labelled rows" if label.positive_ratio is not None else ""
        other = next((name for name in label.classes if not _same(name, label.positive)), "")
        yield f"    positive: {_yaml(label.positive)} # counts as class 1{ratio}; the other value is {said(other)}"
    yield f"    delay: {_duration(label.delay)} # {label.why_delay}"


def _time_reason(found: Inspection) -> str:
    when = found.time.time
    reason = f"reads as {when.name}" if when else "given"
    if when and when.ambiguous:
        reason += f", though {when.ambiguous} would fit too: check the first days after the import"
    if found.other_times:
        reason += f"; other times: {', '.join(said(name) for name in found.other_times)}"
    return reason


def _entity_reason(found: Inspection) -> str:
    if not found.entity:
        return (
            "empty: each request is its own unit of an A/B test; name the column of the user or thing, if there is one"
        )
    others = f"; or {', '.join(said(name) for name in found.other_entities)}" if found.other_entities else ""
    return f"keeps its arm of an A/B test{others}"


def _features(found: Inspection) -> Iterator[str]:
    yield "# Only what is known when the prediction is made. Numbers: low, high and unit may be added as bounds."
    yield "features:"
    for feature in found.features:
        column = feature.column
        remarks = [column.why] if column.why else []
        if column.missing_ratio >= 0.05:
            remarks.append(f"{column.missing_ratio:.0%} missing")
        if feature.power > 0.95:
            remarks.append(f"alone it tells most of the label ({feature.power:.2f} of 1): known before the event?")
        comment = f" # {'; '.join(remarks)}" if remarks else ""
        yield f"  - {{name: {_yaml(column.name)}, type: {column.type}}}{comment}"
    for column, why in found.left_out:
        yield f"  # - {{name: {_yaml(column.name)}, type: {column.type or 'categorical'}}} # left out: {why}"


def _training(found: Inspection) -> Iterator[str]:
    rhythm = found.rhythm
    linear = "ridge" if found.label.task == "regression" else "logistic_regression"
    holdout = _within(rhythm, max(14 * _DAY, 4 * rhythm.block), share=0.25)
    yield "training:"
    yield "  kind: recipe"
    yield "  candidates: # the best by time-ordered cross-validation is taken"
    yield "    - {name: boosting, estimator: hist_gradient_boosting}"
    yield f"    - {{name: linear, estimator: {linear}}}"
    yield f"  folds: {max(2, min(4, rhythm.n_blocks // 6))}"
    yield f"  holdout: {_duration(holdout)} # the newest labelled stretch, on which the gates are measured"


def _goals(found: Inspection) -> Iterator[str]:
    metric, reached, task = found.metric, found.reached, found.label.task
    chance = _chance(metric, found.label)
    objective, gate = _targets(metric, reached, chance)
    op = "<=" if metric in LOWER_IS_BETTER else ">="
    alternatives = {
        "binary": "pr_auc where positives are rare, log_loss, f1, precision, recall, accuracy",
        "multiclass": "f1, log_loss, roc_auc",
        "regression": "rmse" if metric == "mae" else "mae",
    }[task]
    if reached is None:
        yield f"# The metric that every comparison decides on ({alternatives} instead?). No quick model could be measured"
        yield "# on these rows, so the value is a placeholder that any model passes: set it."
    else:
        yield f"# The metric that every comparison decides on ({alternatives} instead?). A quick model reached"
        yield f"# {metric} {reached:.4g} on the newest 30 % of the rows up to {found.rhythm.last:%Y-%m-%d};"
        yield "# the objective allows a tenth less."
        yield "# A replay that begins before then is held to what its own future reached: set what was known at its start."
        if chance is not None and _no_better(metric, reached, chance):
            yield f"# That is no better than knowing nothing: the value is chance ({chance:.4g}). Set what you need."
    yield f'objective: {{metric: {metric}, op: "{op}", value: {objective}}}'
    yield "gates: # a candidate that misses one is not rolled out"
    yield f'  - {{metric: {metric}, op: "{op}", value: {gate}}}'


def _chance(metric: Metric, label: LabelProposal) -> float | None:
    """What a model that knows only how frequent the classes are reaches; None where that depends on a threshold."""
    share = label.positive_ratio
    if metric == "roc_auc":
        return 0.5
    if metric == "accuracy":
        return 1 / len(label.classes) if label.classes else None
    if share is None or not 0 < share < 1:
        return None
    if metric in ("pr_auc", "precision"):
        return share
    return -share * math.log(share) - (1 - share) * math.log(1 - share) if metric == "log_loss" else None


def _no_better(metric: Metric, reached: float, chance: float) -> bool:
    return reached >= chance if metric in LOWER_IS_BETTER else reached <= chance


def _targets(metric: Metric, reached: float | None, chance: float | None) -> tuple[str, str]:
    """Objective and gate: a tenth and a quarter of the way from what was reached back to knowing nothing, never beyond."""
    if metric in LOWER_IS_BETTER:
        if reached is None or reached <= 0:
            return ("1e12", "1e12") if reached is None else ("1e-9", "1e-9")
        most = math.inf if chance is None else chance
        return _rounded(min(reached * 1.1, most), up=True), _rounded(min(reached * 1.25, most), up=True)
    if reached is None:
        return "0.0", "0.0"
    nothing = chance or 0.0
    gain = max(0.0, reached - nothing)
    return _rounded(nothing + 0.9 * gain, up=False), _rounded(nothing + 0.75 * gain, up=False)


def _rounded(value: float, *, up: bool) -> str:
    """Three significant digits, away from what would fail a model."""
    if value <= 0:
        return "0.0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    rounded = (math.ceil if up else math.floor)(value / unit) * unit
    text = f"{rounded:.12g}"
    # YAML 1.1 reads 1e+06 as text: a number needs its point.
    return text if "e" not in text else f"{rounded:.6e}"


def _monitoring(rhythm: Rhythm) -> Iterator[str]:
    windows = max(28 * _DAY, 10 * rhythm.block)
    n_blocks = rhythm.backtest // rhythm.block
    needed = needed_z(Monitoring().win_z, n_blocks)
    yield "monitoring:"
    yield f"  block: {_duration(rhythm.block)} # unit of independent observation: {rhythm.why}"
    yield f"  backtest: {_duration(rhythm.backtest)} # the larger of 28 days and 10 blocks"
    yield f"  # Over {n_blocks} blocks a challenger is adopted at a z of {needed:.2f} (win_z); over fewer it takes more."
    yield f"  cadence: {_duration(rhythm.cadence)} # between two backtests when nothing is wrong"
    yield f"  drift_window: {_duration(windows)}"


def _rollout(found: Inspection) -> Iterator[str]:
    rhythm = found.rhythm
    dwell, deadline = rhythm.dwell, max(7 * _DAY, 3 * rhythm.dwell)
    per_day = rhythm.rows_per_block / (rhythm.block / _DAY)
    waiting = per_day * (deadline / _DAY) / 2  # half of the deadline should be enough to judge a step
    steps = [5, 25] if waiting * 0.05 >= 30 else [25, 50] if waiting * 0.25 >= 5 else [50]
    requests = max(1, min(30, int(waiting * steps[0] / 100)))
    horizon = max(28 * _DAY, 3 * rhythm.block)
    samples = max(30, min(1_000, int(per_day * (horizon / _DAY) / 4)))
    margin = "0.02" if found.metric not in ("rmse", "mae") else _rounded((found.reached or 1.0) * 0.05, up=True)
    yield "rollout:"
    yield f"  steps: {steps} # percent of live requests, for about {per_day:.3g} rows a day"
    yield f"  dwell: {_duration(dwell)} # at least one block at every step"
    yield f"  deadline: {_duration(deadline)} # without a verdict by then, traffic returns to the champion"
    yield f"  minimum_requests: {requests} # of the candidate, before a step can pass"
    yield f"  ab_test: {{percent: 50, horizon: {_duration(horizon)}, minimum_samples: {samples}, margin: {margin}}}"
    yield f"  bake: {_duration(max(3 * _DAY, rhythm.block))}"


def _within(rhythm: Rhythm, wanted: timedelta, *, share: float) -> timedelta:
    """`wanted`, or `share` of the whole time where that is less; whole blocks, one at least."""
    most = (rhythm.last - rhythm.first) * share
    return max(rhythm.block, min(wanted, most // rhythm.block * rhythm.block))


def _model_name(file: Path) -> str:
    stem = file.name.split(".")[0] if file.is_file() else file.name
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:63].strip("-")
    return name or "model"


def _yaml(value: object) -> str:
    """A scalar as YAML that reads back as the same value, whatever characters it holds."""
    if isinstance(value, str) and not (_PLAIN.match(value) and value.lower() not in _YAML_WORDS):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1e9).strip()
    return yaml.safe_dump(value, width=1e9).removesuffix("\n...\n").strip() if not isinstance(value, str) else value


def _same(name: str, positive: object) -> bool:
    if isinstance(positive, bool):
        return name == str(positive).lower()
    return name == str(positive)


def _duration(length: timedelta) -> str:
    days, rest = divmod(length, _DAY)
    return f"P{days}D" if not rest else f"P{days}DT{int(rest.total_seconds())}S"
