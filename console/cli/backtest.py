"""`steady backtest`: the loop over a recorded history, with no permission and no effect on anything outside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from console.cli.options import Home, Json, settings_of
from console.cli.output import err, out, print_json
from console.interrupts import ended_by_signals
from state.errors import InputError

QUIET_SECONDS, EVERY_SECONDS = 2.0, 2.0


def backtest(
    spec: Annotated[Path, typer.Argument(help="A model spec; `steady init FILE` writes one.")],
    predictions: Annotated[
        Path, typer.Option(help="CSV or parquet file(s): id, event time, features and/or score of every prediction.")
    ],
    labels: Annotated[Path, typer.Option(help="CSV or parquet file(s): id, label, and when it became available.")],
    history: Annotated[
        int | None,
        typer.Option(min=1, help="Days before the first live one; default: what a first champion needs."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Stop after so many live days.")] = None,
    answers: Annotated[str, typer.Option(help="Who answers questions: none, or approve (yes, the next day).")] = "none",
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page here.")] = None,
    json: Json = False,
    home: Home = None,
) -> None:
    """What the loop would have done on a recorded history: raised, trained, promoted, rolled back or left alone.

    Example: steady backtest churn.yaml --predictions predictions.parquet --labels labels.csv --html backtest.html
    """
    from console.backtest import BacktestRequest
    from console.backtest_page import check_writable

    if answers not in ("none", "approve"):
        raise InputError(f"--answers {answers!r} is not known", remedy="Use none or approve")
    if html is not None:
        check_writable(html)
    request = BacktestRequest(
        spec=spec, predictions=predictions, labels=labels, history_days=history, n_days=days,
        answers="approve" if answers == "approve" else "none", policy_dir=settings_of(home).policy_dir,
    )  # fmt: skip
    _run(request, html=html, json=json)


def _run(request: Any, *, html: Path | None, json: bool) -> None:
    from console.backtest import backtest as run
    from console.backtest_page import write_page
    from console.backtest_text import render

    with ended_by_signals():
        result = run(request, progress=_Progress())
    if html is not None:
        write_page(result, html)
    if json:
        print_json(result.model_dump(mode="json"))
        return
    for part in render(result):
        out.print(part)
    if html is not None:
        out.print(f"wrote {html}", markup=False)


class _Progress:
    """Lines on standard error where work takes long, and not more than one every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + QUIET_SECONDS

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            err.print(text, markup=False, soft_wrap=True)
            self._next = now + EVERY_SECONDS
