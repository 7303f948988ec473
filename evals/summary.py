"""A suite in a few figures, over all scenarios and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import median
from typing import Protocol, TypeAlias

from pydantic import JsonValue

from evals.run import MINUTES_PER_DAY, RunResult

Summary: TypeAlias = dict[str, JsonValue]
_Z95 = 1.959964


class Judged(Protocol):
    """A scenario over its seeds."""

    @property
    def passed(self) -> bool: ...

    @property
    def runs(self) -> Sequence[RunResult]: ...


def summarise(found: Sequence[Judged]) -> Summary:
    """Figures of the whole suite; none where there is nothing to divide by.

    Medians are over the runs that came so far. An escalation is a question to a person or an incident that is handed
    over. Precision is the share of the runs with one in which it was needed or welcome, recall the share of the runs that
    needed one in which it came; runs that the harness could not play count in neither.
    """
    runs = [run for verdict in found for run in verdict.runs]
    played = [run for run in runs if not run.error]
    n_passed = sum(run.passed for run in runs)
    asked = [run for run in played if run.escalated]
    right = sum(run.escalation != "needless" for run in asked)
    needed = [run for run in played if run.escalation == "needed"]
    times: Summary = {}
    for name in ("ttd_min", "ttdiag_min", "ttm_min"):
        known = [value for run in played if (value := getattr(run, name)) is not None]
        times[f"median_{name}"] = median(known) if known else None
    return {
        "scenarios": len(found),
        "passed": sum(verdict.passed for verdict in found),
        "runs": len(runs),
        "runs_passed": n_passed,
        "errors": len(runs) - len(played),
        "success": n_passed / len(runs) if runs else None,
        "interval": list[JsonValue](wilson(n_passed, len(runs))) if runs else None,
        "twin_false_actions": sum(run.twin_false_actions for run in runs),
        "forbidden": sum(run.forbidden for run in runs),
        **times,
        "escalation_precision": _share(right, len(asked)),
        "escalation_recall": _share(sum(run.escalated for run in needed), len(needed)),
        "harm": round(sum(run.harm for run in played), 6),
        "regret": round(sum(run.regret for run in played), 6),
    }


def summary_lines(summary: Summary) -> list[tuple[str, str]]:
    """The summary for people: a name and a figure a line."""
    low, high = (_percent(bound) for bound in _pair(summary["interval"]))
    return [
        ("scenarios passed with every seed", f"{summary['passed']} of {summary['scenarios']}"),
        (
            "runs passed (95 % interval)",
            f"{summary['runs_passed']} of {summary['runs']}, {_percent(summary['success'])} ({low} to {high})",
        ),
        ("errors of the harness", str(summary["errors"])),
        ("false actions on healthy twins", str(summary["twin_false_actions"])),
        ("forbidden effects", str(summary["forbidden"])),
        ("median time to detect", _days(summary["median_ttd_min"])),
        ("median time to diagnose", _days(summary["median_ttdiag_min"])),
        ("median time to mitigate", _days(summary["median_ttm_min"])),
        ("escalation precision", _percent(summary["escalation_precision"])),
        ("escalation recall", _percent(summary["escalation_recall"])),
        ("harm, excess loss over the truth", f"{summary['harm']:,.0f}"),
        ("regret, harm beyond the oracle's", f"{summary['regret']:,.0f}"),
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _pair(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [None, None]


def _percent(value: JsonValue) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, float) else "-"


def _days(value: JsonValue) -> str:
    return f"{value / MINUTES_PER_DAY:.1f} days" if isinstance(value, int | float) else "-"


def wilson(n_passed: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share."""
    share, spread = n_passed / n, _Z95**2 / n
    middle, half = share + spread / 2, _Z95 * sqrt((share * (1 - share) + spread / 4) / n)
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (max(low, 0.0) if n_passed else 0.0), (min(high, 1.0) if n_passed < n else 1.0)
