"""What a matured block says of its labels: how many came, whether both classes did, and how they go with the scores."""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue

from state.spec import ModelSpec
from tools.drift.labels import MIN_ROWS, LabelCounts
from tools.drift.performance import block_of, rows_by
from tools.steps import MIN_HISTORY, step_beyond
from tools.volume import judge_volume

MISSING = 0.5
"""Share of a block's rows without a label, beyond what any earlier block had, from which on its labels have not come."""
FEWER = 0.1
"""The same from which on it is worth a word."""


class LabelledBlock(BaseModel):
    """The labels of one matured block; JSON only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: str
    n_rows: int | None = None
    """Rows that were served; None where that was not counted."""
    n_labelled: int = 0
    n_others: int = 0
    """Labels that are not of the block's most frequent class; of a number, all of them."""
    mean: float | None = None
    cells: dict[str, list[list[int]]] = {}
    """By version, rows and labels of class 1 by score cell; of a binary task."""


def labelled_blocks(frame: pl.DataFrame, spec: ModelSpec, served: dict[str, int]) -> list[LabelledBlock]:
    """Every matured block that rows or labels are known of, oldest first. `served` are their rows, by block."""
    parts = rows_by(frame, block_of(frame["event_time"], spec.monitoring.block))
    found = []
    for block in sorted({*parts, *served}):
        part = parts.get(block)
        if part is None:
            found.append(LabelledBlock(block=block, n_rows=served[block]))
            continue
        common = int(part["label"].value_counts()["count"].max() or 0) if spec.task != "regression" else 0  # type: ignore[arg-type]
        mean = part["label"].mean()
        found.append(
            LabelledBlock(
                block=block, n_rows=served.get(block), n_labelled=part.height, n_others=part.height - common,
                mean=float(mean) if isinstance(mean, int | float) else None,
                cells=_cells(part, block) if spec.task == "binary" else {},
            )
        )  # fmt: skip
    return found


def _cells(part: pl.DataFrame, block: str) -> dict[str, list[list[int]]]:
    versions = rows_by(part, part["version"])
    return {v: LabelCounts.of(block, rows["label"], rows["score"]).cells() for v, rows in versions.items()}


def check_labels(
    blocks: list[LabelledBlock], before: list[LabelledBlock], spec: ModelSpec
) -> list[dict[str, JsonValue]]:
    """Findings on matured blocks beside the good ones before them, each with its `block`, hard ones first."""
    found: list[dict[str, JsonValue]] = []
    known = list(before)
    for block in blocks:
        findings = _missing(block, known) or _one_class(block, known, spec)
        found += findings
        if not any(finding["severity"] == "hard" for finding in findings):
            known.append(block)
    return sorted(found, key=lambda finding: str(finding["severity"]))


def _missing(block: LabelledBlock, before: list[LabelledBlock]) -> list[dict[str, JsonValue]]:
    """Labels that have not come when they should have: late ones, or a pipeline that stands."""
    usual = [earlier for earlier in before if earlier.n_rows]
    if not block.n_rows or len(usual) < MIN_HISTORY:
        return []
    rows = np.array([earlier.n_rows for earlier in usual], dtype=np.int64)
    gone = np.array([max((earlier.n_rows or 0) - earlier.n_labelled, 0) for earlier in usual], dtype=np.int64)
    here, now = np.array([block.n_rows]), np.array([max(block.n_rows - block.n_labelled, 0)])
    step = step_beyond(now, here, gone, rows)
    if step < FEWER:
        return []
    detail = (
        f"{block.n_labelled} of {block.n_rows} rows of the block of {block.block} have a label after the declared "
        f"delay, at least {1 - float((gone / rows).max()):.0%} had one in any block before"
    )
    return [_finding(block, "labels_missing", "hard" if step >= MISSING else "warn", detail)]


def _one_class(block: LabelledBlock, before: list[LabelledBlock], spec: ModelSpec) -> list[dict[str, JsonValue]]:
    if spec.task == "regression" or block.n_others or block.n_labelled < MIN_ROWS:
        return []
    usual = {earlier.block: earlier.n_others for earlier in before}
    volume = judge_volume(block.block, 0, served=usual, length=spec.monitoring.block)
    if len(usual) < MIN_HISTORY or volume is None or volume.kind != "no_rows":
        return []
    detail = (
        f"all {block.n_labelled} labels of the block of {block.block} are of one class, "
        f"{volume.usual:.0f} of another are usual"
    )
    return [_finding(block, "one_class", "hard", detail)]


def _finding(block: LabelledBlock, kind: str, severity: str, detail: str) -> dict[str, JsonValue]:
    return {"kind": kind, "feature": None, "severity": severity, "detail": detail, "block": block.block}
