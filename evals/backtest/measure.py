"""What the history's labels finally say of what was served, and of three controls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np
import polars as pl

from agents.base import matured_until
from evals.backtest.classic import Classic, ClassicSources, Firing, refits_of, run_classic
from evals.backtest.live import Lived
from evals.backtest.predictions import ID, TIME
from evals.backtest.recording import DAY, Recording
from evals.world.data import predictions
from evals.world.package import model_bytes
from evals.world.registry import WorldRegistry
from evals.world.world import midnight
from state.spec import CommandTraining, ModelSpec
from tools.controls import ControlScores, Floats, Refit, Schedule, Scorer, score_from
from tools.drift.performance import block_of, metric_value
from tools.evaluation import metric_loss

NOT_HERE = CommandTraining(kind="command", image="-", command=[])
"""Training of a history that allows none: the controls then have nothing to refit either."""
WAYS = ("served", "never", "always", "classic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """One number for each way in which the history could have been lived through."""

    served: float | None
    never: float | None
    always: float | None
    classic: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The objective's metric over one block's labelled rows; None where they cannot say."""

    block: str
    n_rows: int
    metric: Ways


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """Rows times the objective's loss beyond that of never retraining, summed over blocks."""

    positive: float
    """Over the blocks on which this way was worse."""
    net: float
    """Over all blocks: negative where it did good on the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    blocks: list[Block]
    overall: Ways
    """Mean over the blocks on which all that was made is defined."""
    n_blocks: int
    """Blocks behind `overall`."""
    harm: dict[str, Harm]
    """By way: served, always, classic."""
    always_refits: list[Refit]
    classic_firings: list[Firing]
    classic_looks: int

    @property
    def classic_refits(self) -> int:
        return refits_of(self.classic_firings)


def judge(lived: Lived, *, progress: Callable[[str], None]) -> Judged:
    """Score every live row whose label is finally known by what served it and by the controls."""
    recording = lived.recording
    spec, start, end = recording.spec, midnight(lived.first_day), midnight(lived.last_day) + DAY
    schedule = _schedule(lived)
    controlled = spec if recording.can_train else spec.model_copy(update={"training": NOT_HERE})
    scores = score_from(
        controlled, first=first_scorer(lived), n_classes=recording.n_classes or 2, start=start, end=end,
        labelled=partial(finally_labelled, lived), schedule=schedule, progress=progress,
    )  # fmt: skip
    classic = _classic(lived, schedule, start, end, progress) if recording.can_train else Classic()
    value = classic.score if recording.can_train else None
    blocks, losses = _blocks(spec, scores, value)
    overall, n_blocks = _overall(blocks)
    harm = {way: found for way in WAYS if way != "never" and (found := _harm(losses, way))}
    return Judged(
        blocks=blocks, overall=overall, n_blocks=n_blocks, harm=harm,
        always_refits=list(scores.refits), classic_firings=classic.firings, classic_looks=classic.n_looks,
    )  # fmt: skip


def first_scorer(lived: Lived) -> Scorer:
    """The model that served first."""
    package = WorldRegistry(lived.world).package(lived.recording.spec.model, "1")
    return lived.world.models.decode(model_bytes(package)).score


def finally_labelled(lived: Lived, since: datetime, until: datetime) -> pl.DataFrame:
    """Answered rows of the stretch with the last label that the file has for them."""
    model, recording = lived.recording.spec.model, lived.recording
    rows = predictions(lived.world, model, start=since, end=until)
    if rows.is_empty():
        return rows.with_columns(pl.lit(0.0).alias("label"))
    days = rows[TIME].dt.date().unique().sort().to_list()
    labels = pl.concat([recording.labels_of(day.isoformat()) for day in days])
    newest = labels.unique(ID, keep="last", maintain_order=True).select(ID, "label")
    return rows.join(newest, on=ID, how="inner", maintain_order="left").sort(TIME, ID)


def _schedule(lived: Lived) -> Schedule:
    outputs = [run.outputs for run in lived.world.state.runs.values() if run.pipeline == "train" and run.outputs]
    chosen = str(outputs[0]["chosen"]) if outputs else None
    return Schedule(
        every=lived.recording.spec.monitoring.cadence, rows=lived.recording.fitting_rows,
        excluded_days=partial(_known_bad, lived), candidate=chosen,
    )  # fmt: skip


def _known_bad(lived: Lived, at: datetime) -> Collection[str]:
    """Days that were in quarantine by then."""
    found: set[str] = set()
    for effect in lived.world.effects:
        days = effect.args.get("days")
        if (
            effect.method == "outcomes.quarantine"
            and isinstance(days, list)
            and datetime.fromisoformat(effect.at) <= at
        ):
            found |= {str(day) for day in days}
    return sorted(found)


def _classic(
    lived: Lived, schedule: Schedule, start: datetime, end: datetime, progress: Callable[[str], None]
) -> Classic:
    recording = lived.recording
    sources = ClassicSources(
        rows=partial(_rows, recording), known=partial(_known, recording), final=partial(finally_labelled, lived)
    )
    read = partial(recording.fitting_rows, start=None, as_of=start, excluded_days=())
    reference = read(end=matured_until(start, recording.spec.data.label.delay))
    reference = reference if reference.height else read(end=start)
    # The rule knows nothing of quarantine: it is what a team without this loop would run.
    blind = replace(schedule, excluded_days=lambda at: ())
    return run_classic(
        recording.spec, n_classes=recording.n_classes or 2, first=first_scorer(lived), reference=reference, start=start,
        end=end, sources=sources,
        schedule=blind, progress=progress,
    )  # fmt: skip


def _rows(recording: Recording, since: datetime, until: datetime) -> pl.DataFrame:
    days = [day for day in recording.days if since.date().isoformat() <= day < until.date().isoformat()]
    return pl.concat([recording.rows_of(day) for day in days]) if days else recording.rows_of("")


def _known(recording: Recording, since: datetime, until: datetime, as_of: datetime) -> pl.DataFrame:
    return recording.fitting_rows(start=since, end=until, as_of=as_of, excluded_days=())


def _blocks(
    spec: ModelSpec, scores: ControlScores, classic: Floats | None
) -> tuple[list[Block], list[tuple[int, dict[str, float | None]]]]:
    """The metric by block, and by block its rows and its losses by way."""
    if not len(scores.times_us):
        return [], []
    times = pl.from_epoch(pl.Series(scores.times_us), time_unit="us").dt.replace_time_zone("UTC")
    names = np.array(block_of(times, spec.monitoring.block).to_list(), dtype=np.str_)
    given = {"served": scores.served, "never": scores.never, "always": scores.always, "classic": classic}
    blocks, losses = [], []
    metric = spec.objective.metric
    for name, first, n in zip(*np.unique(names, return_index=True, return_counts=True), strict=True):
        rows = slice(int(first), int(first + n))
        found = {
            way: metric_loss(metric, scores.label[rows], values[rows], spec) if values is not None else None
            for way, values in given.items()
        }
        values_of = {way: None if loss is None else metric_value(metric, loss) for way, loss in found.items()}
        blocks.append(Block(block=str(name), n_rows=int(n), metric=Ways(**values_of)))
        losses.append((int(n), found))
    return blocks, losses


def _overall(blocks: list[Block]) -> tuple[Ways, int]:
    """Mean over the blocks on which every way that was gone is defined: blocks are what decisions are made on."""
    made = [way for way in WAYS if any(getattr(block.metric, way) is not None for block in blocks)]
    values = [[getattr(block.metric, way) for way in made] for block in blocks]
    known = [row for row in values if None not in row]
    means = np.mean(known, axis=0) if known else [None] * len(made)
    found = {way: None if mean is None else float(mean) for way, mean in zip(made, means, strict=True)}
    return Ways(**{way: found.get(way) for way in WAYS}), len(known)


def _harm(losses: list[tuple[int, dict[str, float | None]]], way: str) -> Harm | None:
    excess = [
        n * (mine - never) for n, found in losses
        if (mine := found[way]) is not None and (never := found["never"]) is not None
    ]  # fmt: skip
    if not excess:
        return None
    return Harm(positive=float(sum(value for value in excess if value > 0)), net=float(sum(excess)))
