"""The flights of 2013 as one causal year: every model is fitted on labels known by its day, and scored on later rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from state.bins import fit_bins
from state.profile import Profile
from state.spec import Metric, ModelSpec
from tools.data import WorkspaceData
from tools.drift.performance import block_loss
from tools.estimators import FittedModel
from tools.evaluation import losses_by_block, scored_rows
from tools.experiment import assign
from tools.fits import run_fits
from tools.importer import import_files
from tools.training import fit_candidates, fit_challenger
from tools.training_rows import Rows, encoder_columns, labelled_rows

Floats: TypeAlias = npt.NDArray[np.float64]
LIVE = datetime(2013, 4, 1, tzinfo=UTC)
"""End of the history: January to March."""
END = datetime(2014, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Who answers from `start` to `end`: models are named by their training cut."""

    start: datetime
    end: datetime
    champion: datetime
    challenger: datetime | None = None
    percent: int = 0
    """Share of the entities that the challenger answers."""


class Year:
    """All rows of the year, and the models fitted on them so far."""

    def __init__(self, spec: ModelSpec, folder: Path, workspace: Path) -> None:
        """`folder` holds `data/flights.parquet`; rows pass through the importer, as they do in a workspace."""
        import_files(workspace, spec, folder)
        self.spec = spec
        self.frame = WorkspaceData(workspace).history(spec.model, start=None, end=END).collect()
        self.frame = self.frame.sort("event_time", "request_id")
        labelled = self.frame.filter(pl.col("label").is_not_null())
        self.rows: Rows = labelled_rows(labelled, spec, n_classes=2)
        self.entities = labelled["entity"].to_numpy()
        self._micros = labelled["event_time"].dt.epoch("us").to_numpy()
        self._models: dict[datetime, FittedModel] = {}
        self._scores: dict[datetime, tuple[int, Floats]] = {}

    def at(self, moment: datetime) -> int:
        """Position of the first labelled row at or after `moment`."""
        return int(np.searchsorted(self._micros, round(moment.timestamp() * 1_000_000)))

    def stretch(self, start: datetime, end: datetime) -> Rows:
        return self.rows.between(self.at(start), self.at(end))

    def fit(self, cuts: Iterable[datetime]) -> None:
        """Fit the recipe on the rows before each cut, those not fitted yet side by side."""
        wanted = sorted({cut for cut in cuts if cut not in self._models})
        tasks = [partial(fit_challenger, self.rows.between(0, self.at(cut)), self.spec, seed=SEED) for cut in wanted]
        for cut, (model, _) in zip(wanted, run_fits(tasks), strict=True):
            self._models[cut] = model

    def scores(self, cut: datetime, start: datetime, end: datetime) -> Floats:
        """Scores of the model of `cut` for the labelled rows in [start, end), all of them newer than the cut."""
        assert start >= cut
        self.fit([cut])
        if cut not in self._scores:
            first = self.at(cut)
            self._scores[cut] = first, self._models[cut].score(self.rows.between(first, len(self.rows)))
        first, scores = self._scores[cut]
        return scores[self.at(start) - first : self.at(end) - first]

    def losses(self, cut: datetime, start: datetime, end: datetime) -> dict[str, float]:
        """The objective's loss of the model of `cut` by day."""
        scored = scored_rows(self.stretch(start, end), self.scores(cut, start, end))
        return {block.block: block.loss for block in losses_by_block(scored, self.spec)}

    def reference_losses(self) -> list[float]:
        """Out-of-sample losses of the first champion, as its training records them."""
        trained = fit_candidates(self.rows.between(0, self.at(LIVE)), self.spec, seed=SEED)
        held = losses_by_block(trained.holdout, self.spec)
        return [block.loss for block in (*trained.chosen.blocks, *held)]

    def policy_scores(self, segments: Iterable[Segment]) -> Floats:
        """The score that each labelled row of the live months was answered with."""
        return np.concatenate([self._segment_scores(segment) for segment in segments])

    def _segment_scores(self, segment: Segment) -> Floats:
        scores = self.scores(segment.champion, segment.start, segment.end)
        if segment.challenger is None or not segment.percent:
            return scores
        challenger = self.scores(segment.challenger, segment.start, segment.end)
        is_challenger = self.arms(segment.start, segment.end, percent=segment.percent, key=str(segment.challenger))
        return np.where(is_challenger, challenger, scores)

    def arms(self, start: datetime, end: datetime, *, percent: int, key: str) -> npt.NDArray[np.bool_]:
        """Which labelled rows in [start, end) the challenger answers: both arms keep their flight numbers."""
        entities, inverse = np.unique(self.entities[self.at(start) : self.at(end)], return_inverse=True)
        weights = {"champion": 100.0 - percent, "challenger": float(percent)}
        chosen = np.array([assign(str(name), weights, key=key) == "challenger" for name in entities], dtype=np.bool_)
        return chosen[inverse] if len(entities) else np.zeros(0, dtype=np.bool_)

    def monthly(self, scores: Floats, metric: Metric = "roc_auc") -> dict[int, float]:
        """`metric` as a loss by month, of scores for all the live months."""
        found: dict[int, float] = {}
        for month in range(LIVE.month, 13):
            start = datetime(2013, month, 1, tzinfo=UTC)
            end = datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            rows = slice(self.at(start) - self.at(LIVE), self.at(end) - self.at(LIVE))
            loss = block_loss(metric, self.stretch(start, end).label, scores[rows])
            assert loss is not None
            found[month] = loss
        return found

    def daily_mean(self, scores: Floats) -> float:
        """The objective's loss, mean over the days of the live months."""
        scored = scored_rows(self.stretch(LIVE, END), scores)
        return float(np.mean([block.loss for block in losses_by_block(scored, self.spec)]))

    def reference_profile(self) -> Profile:
        """The profile that the first champion is packaged with: its training rows against their own cells."""
        rows = self.rows.between(0, self.at(LIVE))
        bins = fit_bins(
            {feature.name: (feature.type, rows.columns[feature.name]) for feature in self.spec.features},
            bounds={feature.name: (feature.low, feature.high) for feature in self.spec.features},
        )
        return Profile.count(bins, rows.columns, rows.blocks.tolist())

    def traffic_profile(self, reference: Profile, frame: pl.DataFrame) -> Profile:
        """Every departure of `frame`, labelled or not, counted against the reference's cells by day."""
        days = frame["event_time"].dt.strftime("%Y-%m-%d").to_list()
        return Profile.count(reference.bins, encoder_columns(frame, reference.bins.names), days)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
