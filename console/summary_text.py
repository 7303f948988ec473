"""The summary for the terminal: a few compact tables."""

from __future__ import annotations

from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from console.figures import counted, figure
from console.summary_types import IncidentStory, Measured, Summary

NONE = "-"


def render_text(summary: Summary) -> list[RenderableType]:
    """Tables and lines in the order in which a person wants them."""
    parts: list[RenderableType] = [_headline(summary), _versions(summary), _periods(summary)]
    parts += [_incidents(summary)] if summary.incidents else [Text("No incidents.")]
    parts += [_challengers(summary)] if summary.challengers else [Text("No challenger was compared.")]
    parts += _lines(summary)
    return parts


def shown(value: float | None, metric: str) -> str:
    """A metric as people read it: four decimals for scores, four digits for errors in the label's unit."""
    if value is None:
        return NONE
    return figure(value, ".4g" if metric in ("rmse", "mae") else ".4f")


def gain(measured: Measured, summary: Summary) -> str:
    """How much better than never retraining; positive is better, whichever way the metric runs."""
    if measured.served is None or measured.never is None:
        return NONE
    better = measured.served - measured.never
    better = -better if summary.lower_is_better else better
    return figure(better, "+.4g" if summary.metric in ("rmse", "mae") else "+.4f")


def day(at: datetime | str | None) -> str:
    """A date; times of day matter nowhere in the summary."""
    return NONE if at is None else str(at)[:10]


def percent(ratio: float | None) -> str:
    return NONE if ratio is None else f"{figure(100 * ratio, '.0f')} %"


def kept(summary: Summary) -> str:
    """The headline: how much of what blind retraining would have gained was kept."""
    overall, metric = summary.overall, summary.metric
    if overall.served is None:
        return f"{metric}: not measured"
    said = f"{metric}, mean of blocks: {shown(overall.served, metric)} as served"
    said += f", {shown(overall.never, metric)} never retrained, {shown(overall.always, metric)} always retrained"
    if overall.always is None:
        return said
    if summary.gain_kept is None:
        return f"{said}; always retraining gained nothing"
    n_promoted = sum(version.promoted_at is not None for version in summary.versions) - 1
    n_refits = len(summary.controls.refits)
    return (
        f"{said}; {percent(summary.gain_kept)} of always-retrain's gain kept with "
        f"{counted(max(n_promoted, 0), 'new champion')} instead of {counted(n_refits, 'refit')}"
    )


def answer(status: str) -> str:
    """What became of an approval, in words."""
    return {"used": "approved and used", "void": "void: the facts changed"}.get(status, status)


def took(incident: IncidentStory) -> str:
    """The kinds of action that served an incident, in order, each once; those that failed are named so."""
    kinds = [f"{a.kind} ({a.state})" if a.state in ("failed", "unknown") else a.kind for a in incident.actions]
    return ", ".join(dict.fromkeys(kind.replace("_", " ") for kind in kinds)) or NONE


def _headline(summary: Summary) -> RenderableType:
    seconds = f", {summary.wall_seconds:.0f} s of work" if summary.wall_seconds is not None else ""
    days = (summary.end - summary.start).days
    head = Text(
        f"{summary.model}: {day(summary.start)} to {day(summary.end)} ({counted(days, 'day')}{seconds})", style="bold"
    )
    return Text("\n").join([head, Text(kept(summary))])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", header_style="bold", expand=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _versions(summary: Summary) -> Table:
    table = _table(
        f"Versions ({summary.metric}: as served / never / always)",
        "version", "role", "trained until", "served", "answered", "before", "during", "after",
    )  # fmt: skip
    for version in summary.versions:
        _add(
            table, version.version, version.role, day(version.trained_until),
            f"{day(version.served_from)} to {day(version.served_until) if version.served_until else 'now'}",
            str(version.n_answered),
            *(_three(measured, summary) for measured in (version.before, version.during, version.after)),
        )  # fmt: skip
    return table


def _three(measured: Measured, summary: Summary) -> str:
    """As served / never / always."""
    if not measured.n_rows:
        return NONE
    return " / ".join(shown(v, summary.metric) for v in (measured.served, measured.never, measured.always))


def _periods(summary: Summary) -> Table:
    table = _table(
        f"{summary.metric} by period", "period", "labelled rows", "as served", "never", "always", "better than never"
    )
    for period in summary.periods:
        values = (shown(v, summary.metric) for v in (period.served, period.never, period.always))
        _add(table, period.name, str(period.n_rows), *values, gain(period, summary))
    return table


def _incidents(summary: Summary) -> Table:
    table = _table("Incidents", "#", "opened", "closed", "what", "cause", "resolution", "actions")
    for number, incident in enumerate(summary.incidents, start=1):
        _add(
            table, str(number), day(incident.opened_at), day(incident.closed_at) if incident.closed_at else "open",
            incident.title.removeprefix(f"{summary.model}: "), incident.cause.replace("_", " "),
            (incident.resolution or NONE).replace("_", " "), took(incident),
        )  # fmt: skip
    return table


def _challengers(summary: Summary) -> Table:
    table = _table(
        f"Challengers (z of {summary.win_z:g} wins over 28 blocks)", "date", "for", "against", "verdict", "z", "needed",
        "difference", "blocks", "what became of it",
    )  # fmt: skip
    for c in summary.challengers:
        verdict = c.verdict.replace("_", " ") + (", near miss" if c.near_miss else "")
        _add(
            table, day(c.at), c.asked_by or NONE, c.champion or NONE, verdict,
            NONE if c.z is None else figure(c.z, ".2f"), NONE if c.needed_z is None else f"{c.needed_z:.2f}",
            NONE if c.mean_difference is None else figure(c.mean_difference, "+.4f"),
            NONE if c.n_blocks is None else str(c.n_blocks), c.why,
        )  # fmt: skip
    return table


def _lines(summary: Summary) -> list[RenderableType]:
    traffic, log = summary.traffic, summary.log
    lines = [
        f"Traffic: {traffic.n_answered} answered, {traffic.n_errors} errors, {traffic.n_flagged} flagged.",
        _faults(summary),
        _approvals(summary),
        _denials(summary),
        *summary.notes,
    ]
    verdict = "verified" if log.ok else f"NOT OK: {'; '.join(log.problems[:3])}"
    proven = f"{log.n_records} records, {log.n_proven} proven by a signed checkpoint"
    parts: list[RenderableType] = [Text(line) for line in lines]
    return [*parts, Text(f"Decision log {log.path}: {proven}; {verdict}.", style="bold" if log.ok else "bold red")]


def _faults(summary: Summary) -> str:
    held = [fault.day for fault in summary.faults if fault.quarantined]
    loose = [fault.day for fault in summary.faults if not fault.quarantined]
    said = f"Quarantined days: {', '.join(held) or 'none'}."
    return f"{said} Faulty days not in quarantine: {', '.join(loose)}." if loose else said


def _approvals(summary: Summary) -> str:
    said = []
    for approval in summary.approvals:
        who = f" by {approval.answered_by}" if approval.answered_by else ""
        said.append(f"{approval.action.replace('_', ' ')} {answer(approval.status)}{who}")
    return f"Approvals: {', '.join(said) or 'none asked'}."


def _denials(summary: Summary) -> str:
    said = [f"{rule} {n}" for rule, n in summary.denials.items()]
    return f"Denials by rule: {', '.join(said) or 'none'}."
