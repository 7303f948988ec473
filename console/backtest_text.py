"""A backtest for the terminal: what would have happened, what it would have been worth, and why."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from console.backtest_story import Line, condensed
from console.backtest_types import BacktestResult, Harm
from console.figures import counted, figure
from console.summary_text import NONE, shown

WAYS = {
    "served": "the loop",
    "never": "never retrain",
    "always": "always retrain",
    "classic": "classic rule",
}


def headline(result: BacktestResult) -> str:
    """What became of the model, in one sentence."""
    open_ones = sum(incident.closed is None for incident in result.incidents)
    said = [
        counted(len(result.incidents), "incident") + (f" ({open_ones} still open)" if open_ones else ""),
        counted(result.trainings, "training"),
        counted(result.promotions, "promotion"),
        counted(result.rollbacks, "rollback"),
        counted(len(result.questions), "question") + " to people",
    ]
    if not result.incidents and not result.promotions:
        return "It would have left the model alone: no incident, no change."
    return f"It would have raised {', '.join(said[:-1])} and {said[-1]}."


def render(result: BacktestResult) -> list[RenderableType]:
    """Tables and lines in the order in which a person wants them."""
    head = f"{result.model}: {result.first_live_day} to {result.last_live_day}, {counted(result.data.n_live, 'prediction')}"
    parts: list[RenderableType] = [Text(head, style="bold"), Text(headline(result)), _data(result), _ways(result)]
    parts.append(Text(_how(result)))
    parts += [_timeline(result)]
    if result.questions:
        parts.append(_questions(result))
    parts += [Text(f"note: {note}") for note in result.notes]
    parts += [Text(f"digest {result.digest[:16]}", style="dim")]
    return parts


def _data(result: BacktestResult) -> Text:
    data = result.data
    first = {
        "as_served": "the first champion is the recorded model as its scores tell",
        "recipe": "the first champion was fitted by the recipe",
    }[result.first_champion]
    return Text(
        f"{data.n_predictions} predictions and {data.n_labels} labels read ({data.n_late} late, {data.n_restated} "
        f"restated, {data.n_missing} missing); {result.history_days} days of history before the first live one; {first}. "
        f"Questions: {'an approver says yes the next day' if result.answers == 'approve' else 'nobody answers'}."
    )


def _ways(result: BacktestResult) -> Table:
    metric = result.metric
    table = _table(
        f"{metric.name}, mean of {counted(metric.n_blocks, 'block')} ({'lower' if metric.lower_is_better else 'higher'} is "
        "better); harm is rows times loss beyond never retraining",
        "way", metric.name, "harm", "harm, net", "fits", "changes",
    )  # fmt: skip
    for row in way_rows(result):
        table.add_row(*(Text(cell) for cell in row))
    return table


def way_rows(result: BacktestResult) -> list[list[str]]:
    """One row a way: name, metric, harm where positive, harm net, what was fitted, changes of champion."""
    cost = result.cost
    fits = {
        "served": f"{counted(cost.served_trainings, 'training')}, {counted(cost.served_backtests, 'backtest')}",
        "never": "0",
        "always": counted(cost.always_refits, "refit"),
        "classic": f"{counted(cost.classic_refits, 'refit')} in {counted(cost.classic_looks, 'look')}",
    }
    changes = {
        "served": cost.served_changes, "never": 0, "always": cost.always_refits, "classic": cost.classic_refits,
    }  # fmt: skip
    rows = []
    for way, name in WAYS.items():
        value = getattr(result.metric, way)
        if value is None and way in ("always", "classic"):
            rows.append([name, NONE, NONE, NONE, "nothing can be trained here" if not result.trains else NONE, NONE])
            continue
        harm: Harm | None = getattr(result.harm, way, None)
        nothing = Harm(positive=0.0, net=0.0) if way == "never" else None
        known = harm or nothing
        cells = [_sum(known.positive, ""), _sum(known.net, "+")] if known else [NONE, NONE]
        rows.append([name, shown(value, result.metric.name), *cells, fits[way], str(changes[way])])
    return rows


def _sum(value: float, sign: str) -> str:
    return figure(value, f"{sign}.4g") if abs(value) < 1_000 else f"{value:{sign},.0f}"


def _how(result: BacktestResult) -> str:
    metric, sign = result.metric, -1 if result.metric.lower_is_better else 1
    if metric.served is None or metric.never is None:
        return f"No block of the live days has labels enough for {metric.name}: nothing could be measured."
    gain = sign * (metric.served - metric.never)
    said = f"Against never retraining: {figure(gain, '+.4g')} {metric.name}"
    if metric.always is None:
        return f"{said}."
    possible = sign * (metric.always - metric.never)
    if possible <= 0:
        return f"{said}; always retraining would have gained nothing."
    return f"{said}, {figure(100 * gain / possible, '.0f')} % of what always retraining gains."


def _timeline(result: BacktestResult) -> RenderableType:
    if not result.timeline:
        return Text("No decision worth a line.")
    table = _table("Timeline", "day", "what", "why")
    for line in condensed(result.timeline):
        table.add_row(Text(line.moment.day), Text(repeated(line)), Text(line.moment.why))
    return table


def repeated(line: Line) -> str:
    what = line.moment.what
    return f"{what} ({line.times} times until {line.until})" if line.times > 1 else what


def _questions(result: BacktestResult) -> Table:
    table = _table("Questions to people", "asked", "may I", "role", "answer", "why")
    for question in result.questions:
        asked = f"{question.asked} ({question.times} times)" if question.times > 1 else question.asked
        table.add_row(
            Text(asked), Text(question.action.replace("_", " ")), Text(", ".join(question.roles)),
            Text(question.status), Text(question.why),
        )  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", header_style="bold", expand=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table
