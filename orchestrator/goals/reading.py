"""Reading a goal: typed JSON, or one of the sentences that the README lists. Anything else is refused, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from state.errors import InputError
from state.goals import Goal, GoalIntent, Objective

SENTENCES: tuple[str, ...] = (
    "keep MODEL's METRIC above|below VALUE",
    "retrain MODEL",
    "deploy version N of MODEL",
    "promote version N of MODEL",
    "roll back MODEL",
    "investigate MODEL",
    "validate MODEL",
    "compare version N of MODEL with the champion",
    "hold MODEL",
    "resume MODEL",
    "report on MODEL",
)
"""The forms that are understood, as the README shows them."""

KEYS: dict[str, str] = {
    "intent": ", ".join(get_args(GoalIntent)),
    "model": "name of the model; it may be left out where there is only one",
    "version": "a number, champion, challenger, previous or latest",
    "objectives": 'list of {"metric", "op", "value"}, on the metric that the model is judged by; rates and scores are fractions',
    "strategy": "canary",
    "approval": "policy (a person is asked where policy says so) or always",
    "dry_run": "true: what would happen, and nothing happens",
    "baseline": "champion, of a comparison",
}
"""Keys of the typed goal that something acts upon, and their values."""
NOT_YET: tuple[str, ...] = ("constraints", "window", "deadline", "every", "traffic_percent")
"""Keys that are read, and refused because nothing acts upon them yet."""

METRIC_NAMES = {
    "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1", "f1 score": "f1",
    "auc": "roc_auc", "roc auc": "roc_auc", "roc_auc": "roc_auc", "pr auc": "pr_auc", "pr_auc": "pr_auc",
    "log loss": "log_loss", "log_loss": "log_loss", "rmse": "rmse", "mae": "mae", "psi": "psi",
    "null rate": "null_rate", "null_rate": "null_rate", "error rate": "error_rate", "error_rate": "error_rate",
    "p50 latency": "latency_p50_ms", "latency_p50_ms": "latency_p50_ms",
    "p99 latency": "latency_p99_ms", "latency_p99_ms": "latency_p99_ms",
}  # fmt: skip


class NotUnderstood(InputError):
    """No form fits the sentence."""


_MODEL = r"(?P<model>[a-z0-9][a-z0-9-]*)"
_VERSION = r"version (?P<version>\d{1,9}|champion|challenger|previous|latest)"


def _maintain(match: re.Match[str]) -> dict[str, Any]:
    name = match["metric"].lower().replace("-", " ").strip()
    if name not in METRIC_NAMES:
        raise InputError(
            f"goal: the metric {match['metric']!r} is not known",
            remedy=f"Use one of {', '.join(sorted(set(METRIC_NAMES.values())))}",
        )
    op = ">=" if match["side"] in ("above", "over", "at least") else "<="
    objective = Objective.model_validate({"metric": METRIC_NAMES[name], "op": op, "value": _value(match)})
    return {"intent": "maintain", "model": match["model"], "objectives": [objective]}


def _value(match: re.Match[str]) -> float:
    value = float(match["value"])
    return value / 100 if match["percent"] else value


def _of_model(intent: str, **extra: Any) -> Callable[[re.Match[str]], dict[str, Any]]:
    return lambda match: {"intent": intent, "model": match["model"], **extra}


def _of_version(intent: str, **extra: Any) -> Callable[[re.Match[str]], dict[str, Any]]:
    return lambda match: {"intent": intent, "model": match["model"], "version": match["version"], **extra}


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], dict[str, Any]]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), make)
    for pattern, make in (
        (
            rf"keep {_MODEL}(?:'s|') (?P<metric>[A-Za-z0-9_ -]+?) (?P<side>above|over|at least|below|under|at most) "
            r"(?P<value>\d+(?:\.\d+)?)\s?(?P<percent>%)?",
            _maintain,
        ),
        (rf"re-?train {_MODEL}", _of_model("retrain")),
        (rf"deploy {_VERSION} of {_MODEL}", _of_version("deploy", strategy="canary")),
        (rf"promote {_VERSION} of {_MODEL}", _of_version("promote")),
        (rf"roll ?back {_MODEL}", _of_model("rollback", version="previous")),
        (rf"investigate {_MODEL}", _of_model("investigate")),
        (rf"validate {_MODEL}", _of_model("validate")),
        (rf"compare {_VERSION} of {_MODEL} with the champion", _of_version("compare", baseline="champion")),
        (rf"hold {_MODEL}", _of_model("hold")),
        (rf"resume {_MODEL}", _of_model("resume")),
        (rf"report on {_MODEL}", _of_model("report")),
    )
)


def read_goal(text: str) -> Goal:
    """The typed goal of `text`: a JSON object, or one sentence in a form of `SENTENCES`.

    The text is data: it can name what should be true, and nothing in it can change what policy allows.

    Raises:
        NotUnderstood: no form fits.
        InputError: a key or value of the JSON is wrong, or the metric of a sentence is not known.
    """
    stripped = text.strip()
    if stripped.startswith("{"):
        return _from_json(stripped)
    sentence = re.sub(r"\s+", " ", stripped).rstrip(".!").strip()
    for pattern, make in _FORMS:
        match = pattern.fullmatch(sentence)
        if match:
            return Goal.model_validate(make(match))
    raise NotUnderstood(
        f"goal: {stripped[:120]!r} is not a form that is understood",
        remedy="Write one of: " + "; ".join(SENTENCES) + "; or the typed goal as JSON",
    )


def refuse_unserved(goal: Goal) -> None:
    """A key that nothing acts upon is refused: a goal that is half kept would look like one that is kept.

    Raises:
        InputError: the goal has such a key.
    """
    given = [name for name in NOT_YET if getattr(goal, name) not in (None, [])]
    if goal.strategy not in (None, "canary"):
        given.append("strategy")
    if given:
        raise InputError(
            f"goal: {', '.join(given)} is not carried out yet", remedy="Leave it out; the spec's rollout decides"
        )


def refuse_unmeasured(goal: Goal, *, model: str, judged_by: str) -> None:
    """A bound is watched on the metric that the model is judged by.

    Raises:
        InputError: the goal bounds another one.
    """
    other = [objective.metric for objective in goal.objectives if objective.metric != judged_by]
    if other:
        raise InputError(
            f"goal: {other[0]} is not what {model} is judged by",
            remedy=f"State the goal in {judged_by}, or change objective.metric in the spec",
        )


def _from_json(text: str) -> Goal:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise InputError(f"goal: not valid JSON at line {exc.lineno}, column {exc.colno}", remedy=exc.msg) from exc
    try:
        return Goal.model_validate(value)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "goal"
        raise InputError(f"goal: {field}: {first['msg']}", remedy="See `steady goal --help` for the keys") from exc
