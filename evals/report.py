"""What a suite of runs says: one verdict a scenario, a summary by family, a page, and the difference of two suites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import JsonValue

from evals.crash import CrashReport
from evals.run import RunResult
from evals.summary import summarise, summary_lines, wilson
from state.canonical import digest
from state.errors import InputError

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_TIMES = ("ttd_min", "ttdiag_min", "ttm_min")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One scenario over its seeds: what has to hold holds in every run, counts are sums, times are medians."""

    id: str
    family: str
    difficulty: str
    passed: bool
    """With every seed: pass^k of the k seeds."""
    pass_ratio: float
    interval: tuple[float, float]
    """Wilson 95 % of the pass ratio."""
    error: str
    gates: dict[str, bool]
    why: dict[str, str]
    ttd_min: float | None
    ttdiag_min: float | None
    ttm_min: float | None
    actions: int
    forbidden: int
    duplicates: int
    twin_false_actions: int
    escalated: bool
    harm: float
    regret: float
    digest: str
    runs: tuple[RunResult, ...]


def verdicts(results: Sequence[RunResult]) -> list[Verdict]:
    """One verdict a scenario, in the order of the results."""
    by_id: dict[str, list[RunResult]] = {}
    for result in results:
        by_id.setdefault(result.id, []).append(result)
    return [_verdict(runs) for runs in by_id.values()]


def _verdict(runs: list[RunResult]) -> Verdict:
    first = runs[0]
    names = list(dict.fromkeys(name for run in runs for name in run.gates))
    why = {f"{name} (seed {run.seed})": text for run in runs for name, text in run.why.items()}
    times: dict[str, float | None] = {}
    for name in _TIMES:
        known = [value for run in runs if (value := getattr(run, name)) is not None]
        times[name] = median(known) if known else None
    return Verdict(
        id=first.id,
        family=first.family,
        difficulty=first.difficulty,
        passed=all(run.passed for run in runs),
        pass_ratio=sum(run.passed for run in runs) / len(runs),
        interval=wilson(sum(run.passed for run in runs), len(runs)),
        error="; ".join(f"seed {run.seed}: {run.error}" for run in runs if run.error),
        gates={name: all(run.gates.get(name, False) for run in runs) for name in names},
        why=why,
        ttd_min=times["ttd_min"],
        ttdiag_min=times["ttdiag_min"],
        ttm_min=times["ttm_min"],
        actions=sum(run.actions for run in runs),
        forbidden=sum(run.forbidden for run in runs),
        duplicates=sum(run.duplicates for run in runs),
        twin_false_actions=sum(run.twin_false_actions for run in runs),
        escalated=any(run.escalated for run in runs),
        harm=round(sum(run.harm for run in runs), 6),
        regret=round(sum(run.regret for run in runs), 6),
        digest=digest([run.digest for run in runs]),
        runs=tuple(runs),
    )


def as_json(
    found: Sequence[Verdict],
    *,
    crashes: Sequence[CrashReport] = (),
    mode: str = "rules",
    language: dict[str, JsonValue] | None = None,
    skipped: Sequence[str] = (),
) -> dict[str, JsonValue]:
    """The document of `steady eval run --json`; `language` is what was asked of a model, `skipped` who needed one."""
    document: dict[str, JsonValue] = {
        "scenarios": [msgspec.to_builtins(asdict(verdict)) for verdict in found],
        "families": families(found),
        "suite": summarise(found),
        "mode": mode,
        "language": language,
        "skipped": list[JsonValue](skipped),
    }
    if crashes:
        document["crash"] = [msgspec.to_builtins(asdict(report)) for report in crashes]
    return document


def families(found: Sequence[Verdict]) -> dict[str, JsonValue]:
    """By family: scenarios and runs passed. `passed` counts scenarios that passed with every seed, which is pass^k.

    `success` is the share of runs that passed; its interval takes runs as independent, which seeds of one scenario are
    not quite, so that it is the narrowest that can be claimed.
    """
    told: dict[str, JsonValue] = {}
    for family in dict.fromkeys(verdict.family for verdict in found):
        mine = [verdict for verdict in found if verdict.family == family]
        runs = [run for verdict in mine for run in verdict.runs]
        told[family] = {
            "scenarios": len(mine),
            "passed": sum(verdict.passed for verdict in mine),
            "runs": len(runs),
            "runs_passed": sum(run.passed for run in runs),
            "success": sum(run.passed for run in runs) / len(runs),
            "interval": list[JsonValue](wilson(sum(run.passed for run in runs), len(runs))),
            "errors": sum(bool(run.error) for run in runs),
            "twin_false_actions": sum(run.twin_false_actions for run in runs),
            "forbidden": sum(run.forbidden for run in runs),
        }
    return told


def write_page(found: Sequence[Verdict], path: Path, *, crashes: Sequence[CrashReport] = ()) -> None:
    """Write the HTML report to `path`: one static file without an outside asset.

    Raises:
        InputError: the file cannot be written.
    """
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("suite.html.j2").render(
        verdicts=found,
        families=families(found),
        crashes={report.id: report for report in crashes},
        summary=summary_lines(summarise(found)),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror}", remedy="Name a writable file") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One scenario in two suites."""

    id: str
    before: str
    """`passed`, `failed`, `error` or `absent`."""
    after: str
    same_digest: bool

    @property
    def worse(self) -> bool:
        return self.before == "passed" and self.after in ("failed", "error")


def compare(before: Path, after: Path) -> list[Change]:
    """Every scenario whose verdict or digest differs between two documents of `steady eval run --json`.

    Raises:
        InputError: a file is no such document.
    """
    old, new = _read(before), _read(after)
    changes = []
    for name in sorted({*old, *new}):
        same = name in old and name in new and old[name][1] == new[name][1]
        change = Change(id=name, before=_state(old, name), after=_state(new, name), same_digest=same)
        if not same or change.before != change.after:
            changes.append(change)
    return changes


_Seen = dict[str, tuple[str, str]]


def _state(suite: _Seen, name: str) -> str:
    return suite[name][0] if name in suite else "absent"


def _read(path: Path) -> _Seen:
    try:
        document = msgspec.json.decode(path.read_bytes())
        return {
            str(item["id"]): (
                "error" if item["error"] else "passed" if item["passed"] else "failed",
                str(item["digest"]),
            )
            for item in document["scenarios"]
        }
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", remedy="Name a file of results") from exc
    except (msgspec.MsgspecError, KeyError, TypeError) as exc:
        raise InputError(
            f"{path} holds no results of `steady eval run --json`", remedy="Write one with --json"
        ) from exc
