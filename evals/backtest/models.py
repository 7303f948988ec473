"""The models of a recorded world: the team's own as its scores tell, and those that the spec's recipe makes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import polars as pl
from polars import selectors

from evals.backtest.predictions import SCORE
from evals.world.models import Model
from evals.world.truth import Floats
from state.canonical import digest
from state.errors import InputError, ToolRejected
from state.spec import ModelSpec
from tools.controls import score_with
from tools.estimators import FittedModel
from tools.training import fit_challenger
from tools.training_rows import frame_sha256, labelled_rows, recipe_of, recipe_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class AsServed:
    """What the team's model answered; it knows the recorded rows and nothing else."""

    features: tuple[str, ...]
    classes: tuple[str, ...]
    """Of a multiclass model; empty otherwise."""

    def score(self, frame: pl.DataFrame) -> Floats:
        """Probability of class 1 or the number, `(n_rows,)`, or of each class, `(n_rows, n_classes)`: 1 of a class that
        was predicted without a probability, 0 of one that the model did not know."""
        given = frame[SCORE]
        if not self.classes:
            return given.cast(pl.Float64).to_numpy()
        found = np.zeros((frame.height, len(self.classes)))
        if given.dtype == pl.String:
            place = given.replace_strict({name: at for at, name in enumerate(self.classes)}, return_dtype=pl.Int64)
            found[np.arange(frame.height), place.to_numpy()] = 1.0
        elif frame.height:
            known = np.array(given.to_list(), dtype=np.float64)
            found[:, : known.shape[1]] = known
        return found

    def importance(self) -> dict[str, float]:
        """Nothing is known of it: every feature counts alike."""
        return {name: 1 / len(self.features) for name in self.features}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedByRecipe:
    model: FittedModel
    sha256: str
    """Digest of the rows, the recipe and the candidate that it was fitted with."""
    shares: dict[str, float]

    def score(self, frame: pl.DataFrame) -> Floats:
        return score_with(self.model, frame) if frame.height else np.zeros(0)

    def importance(self) -> dict[str, float]:
        return dict(self.shares)


class RecordedModels:
    """`evals.world.models.Models` by the spec's recipe. Packages name a fitted object; the object stays in this process."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self._kept: dict[str, Model] = {}

    def fit(self, spec: ModelSpec, rows: pl.DataFrame) -> Model:
        try:
            data = labelled_rows(rows, spec, n_classes=self.n_classes)
            model, candidate = fit_challenger(data, spec, seed=recipe_of(spec).seed)
        except InputError as exc:
            raise ToolRejected(str(exc)) from exc
        return fitted(spec, model, rows, candidate=candidate.name, shares={})

    def encode(self, model: Model) -> bytes:
        name = "as_served" if isinstance(model, AsServed) else model.sha256 if isinstance(model, FittedByRecipe) else ""
        self._kept[name] = model
        return json.dumps({"kind": "in_process", "sha256": name}).encode()

    def decode(self, data: bytes) -> Model:
        try:
            return self._kept[json.loads(data)["sha256"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise ToolRejected(f"no model that was fitted in this run: {exc}") from exc


def fitted(
    spec: ModelSpec, model: FittedModel, rows: pl.DataFrame, *, candidate: str, shares: dict[str, float]
) -> FittedByRecipe:
    """The model under a name that its rows and recipe determine."""
    name = digest({"rows": rows_sha256(rows), "recipe": recipe_sha256(spec), "candidate": candidate})
    return FittedByRecipe(model=model, sha256=name, shares=shares)


def rows_sha256(rows: pl.DataFrame) -> str:
    """Digest of rows that a model is fitted on, which the recorded probabilities of classes are no part of."""
    return frame_sha256(rows.select(~selectors.nested()))
