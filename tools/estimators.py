"""The estimators that a recipe may name, fitted on encoded float32 rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from state.contract import Encoder, FeatureContract, Task, fit_encoder
from state.errors import InputError
from state.spec import Candidate, Feature
from tools.cross_fit import training_matrix
from tools.training_rows import Rows

log = logging.getLogger(f"steadyhand.{__name__}")

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_BOOSTING: dict[str, JsonValue] = {"max_iter": 150, "early_stopping": False}
_FOREST: dict[str, JsonValue] = {
    "n_estimators": 200,
    "max_depth": 15,
    "min_samples_split": 10,
    "min_samples_leaf": 4,
    "n_jobs": -1,
}
_LOGISTIC: dict[str, JsonValue] = {"max_iter": 1_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedModel:
    """An encoder with the estimator that was fitted behind it."""

    task: Task
    n_classes: int
    """0 for regression."""
    features: tuple[FeatureContract, ...]
    estimator: Any
    """A scikit-learn estimator or pipeline."""

    def encode(self, rows: Rows) -> Matrix:
        return Encoder(self.features).encode(rows.columns)

    def score_encoded(self, matrix: Matrix) -> Floats:
        """Probability of class 1 or the number, shape `(n_rows,)`; multiclass: of each class, `(n_rows, n_classes)`."""
        if self.task == "regression":
            return np.asarray(self.estimator.predict(matrix), dtype=np.float64)
        # A stretch of time may lack a class; its column then stays at zero.
        probabilities = np.zeros((len(matrix), self.n_classes))
        probabilities[:, self.estimator.classes_.astype(int)] = self.estimator.predict_proba(matrix)
        return probabilities[:, 1] if self.task == "binary" else probabilities

    def score(self, rows: Rows) -> Floats:
        return self.score_encoded(self.encode(rows))


def fit_model(
    rows: Rows,
    candidate: Candidate,
    *,
    task: Task,
    declared: list[Feature],
    seed: int,
    features: tuple[FeatureContract, ...] | None = None,
) -> FittedModel:
    """Fit `candidate` on `rows`; `features` None fits the encoder on them too. Target means are cross-fitted.

    The rows are rounded to float32 before the estimator sees them: one trained on float64 disagrees with
    its ONNX export by up to 1e-2 where a value lies on a threshold.

    Raises:
        InputError: rows of a single class, or the estimator refuses a parameter; the message names the candidate.
    """
    if task != "regression" and len(np.unique(rows.label)) < 2:
        raise InputError(
            f"candidate {candidate.name!r}: the {len(rows)} rows before {rows.blocks[-1]} are all of one class",
            remedy="Widen the window until its older part holds every class",
        )
    if features is None:
        features = fit_encoder(rows.columns, rows.label, declared, task=task)
    matrix = training_matrix(rows, features, task=task)
    # Boosted trees fail on a column without any value (scikit-learn 1.9); a constant one is never split on.
    matrix[:, np.isnan(matrix).all(axis=0)] = 0.0
    label = rows.label if task == "regression" else rows.label.astype(np.int64)
    estimator = build_estimator(candidate, task=task, seed=seed)
    try:
        estimator.fit(matrix, label)
    except ValueError as exc:  # scikit-learn's InvalidParameterError is one
        raise InputError(
            f"candidate {candidate.name!r}: {_first_line(exc)}", remedy="Correct its params in the model spec"
        ) from exc
    _report_convergence(candidate, estimator)
    return FittedModel(task=task, n_classes=rows.n_classes, features=features, estimator=estimator)


def build_estimator(candidate: Candidate, *, task: Task, seed: int) -> Any:
    """An unfitted estimator; params of the spec stand over our defaults.

    Raises:
        InputError: a parameter that the estimator does not know, or an estimator that does not fit the task.
    """
    regression = task == "regression"
    makers: dict[str, tuple[Any, dict[str, JsonValue]]] = {
        "hist_gradient_boosting": (
            HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier,
            _BOOSTING,
        ),
        "random_forest": (RandomForestRegressor if regression else RandomForestClassifier, _FOREST),
        "logistic_regression": (LogisticRegression, _LOGISTIC),
        "ridge": (Ridge, {}),
    }
    maker, defaults = makers[candidate.estimator]
    try:
        estimator = maker(**{**defaults, "random_state": seed, **candidate.params})
    except TypeError as exc:
        raise InputError(
            f"candidate {candidate.name!r}: {_first_line(exc)}",
            remedy=f"Use the parameters of scikit-learn's {maker.__name__}",
        ) from exc
    if candidate.estimator in {"logistic_regression", "ridge"}:
        # Linear models take no NaN and are sensitive to scale; trees are neither.
        return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), estimator)
    return estimator


def _report_convergence(candidate: Candidate, estimator: Any) -> None:
    fitted = estimator[-1] if hasattr(estimator, "steps") else estimator
    if isinstance(fitted, LogisticRegression) and np.max(fitted.n_iter_) >= fitted.max_iter:
        log.warning("candidate %s stopped at max_iter %d before it converged", candidate.name, fitted.max_iter)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
