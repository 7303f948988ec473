"""The models of a world: how they are fitted, and the bytes that a package holds of them."""

from __future__ import annotations

from typing import Protocol

import msgspec
import polars as pl

from evals.world.fitting import Fitted, fit
from evals.world.truth import Floats
from state.errors import ToolRejected
from state.spec import ModelSpec


class Model(Protocol):
    def score(self, frame: pl.DataFrame) -> Floats:
        """Probability of class 1, or the number; shape (n_rows,)."""

    def importance(self) -> dict[str, float]:
        """Weight of each feature; they sum to 1."""


class Models(Protocol):
    def fit(self, spec: ModelSpec, rows: pl.DataFrame) -> Model:
        """A model of labelled rows, oldest first.

        Raises:
            ToolRejected: the rows allow none.
        """

    def encode(self, model: Model) -> bytes:
        """What a package stores of the model; the same model gives the same bytes."""

    def decode(self, data: bytes) -> Model:
        """The model of a package.

        Raises:
            ToolRejected: the bytes are no model of this world.
        """


class LinearModels:
    """Ridge-penalised linear models, stored as JSON."""

    def fit(self, spec: ModelSpec, rows: pl.DataFrame) -> Model:
        return fit(spec, rows)

    def encode(self, model: Model) -> bytes:
        return msgspec.json.encode(model)

    def decode(self, data: bytes) -> Model:
        try:
            return msgspec.json.decode(data, type=Fitted)
        except msgspec.MsgspecError as exc:
            raise ToolRejected(f"no model of this world: {exc}") from exc
