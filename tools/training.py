"""The training recipe: choose a candidate in time order, measure it on the newest rows, refit on everything.

Nothing here trains on a row that is newer than one it is scored on: folds and holdout are stretches of whole blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise

import numpy as np

from state.contract import Encoder, FeatureContract
from state.errors import InputError
from state.spec import Candidate, ModelSpec
from tools.estimators import FittedModel, fit_model
from tools.evaluation import BlockLoss, Scored, losses_by_block, metric_loss, reference_losses, scored_rows
from tools.fits import run_fits
from tools.training_rows import Rows, recipe_of

IMPORTANCE_ROWS = 5_000
MIN_FIT_BLOCKS = 2
"""Blocks that the first fold is fitted on, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
    """A candidate's cross-validation; blocks on which the loss is undefined are left out."""

    candidate: Candidate
    blocks: tuple[BlockLoss, ...]
    loss: float
    """Mean of the block losses."""
    reference: tuple[BlockLoss, ...]
    """The blocks as live ones are judged: `reference_losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fold:
    blocks: list[BlockLoss]
    reference: list[BlockLoss]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRecipe:
    model: FittedModel
    """Fitted on every row."""
    candidates: tuple[CandidateScore, ...]
    chosen: CandidateScore
    holdout: Scored
    """By the chosen candidate fitted on the rows before the holdout."""
    reference: tuple[BlockLoss, ...]
    """What the model's live blocks are held against: the chosen candidate's blocks and those of the holdout."""
    importance: Mapping[str, float]
    """By feature: rise of the objective's loss on the holdout where the feature's values are shuffled."""


def fit_candidates(
    rows: Rows, spec: ModelSpec, *, seed: int, features: tuple[FeatureContract, ...] | None = None
) -> TrainedRecipe:
    """Run the whole recipe of `spec` on `rows`; `features` are the encodings of the packaged model.

    Raises:
        InputError: too few blocks, or a candidate that cannot be fitted.
    """
    recipe = recipe_of(spec)
    cut = holdout_start(rows, holdout=recipe.holdout, block=spec.monitoring.block)
    past, newest = rows.between(0, cut), rows.between(cut, len(rows))
    candidates = tuple(cross_validate(past, candidate, spec, seed=seed) for candidate in recipe.candidates)
    # Ties go to the candidate that the spec names first.
    chosen = min(candidates, key=lambda scored: scored.loss)
    measured, final = run_fits(
        [
            partial(_fit, past, chosen.candidate, spec, seed=seed),
            partial(_fit, rows, chosen.candidate, spec, seed=seed, features=features),
        ]
    )
    held = scored_rows(newest, measured.score(newest))
    return TrainedRecipe(
        model=final,
        candidates=candidates,
        chosen=chosen,
        holdout=held,
        reference=(*chosen.reference, *reference_losses(held, spec)),
        importance=permutation_importance(measured, newest, spec, seed=seed),
    )


def holdout_start(rows: Rows, *, holdout: timedelta, block: timedelta) -> int:
    """The row at which the newest `holdout`, in whole blocks, begins.

    Raises:
        InputError: too few blocks to leave both a holdout and something to train on.
    """
    starts = rows.block_starts()
    n_blocks = len(starts) - 1
    n_held = _blocks_within(rows, holdout, block)
    if n_blocks - n_held < MIN_FIT_BLOCKS + 1:
        raise InputError(
            f"{n_blocks} blocks of {block} leave {max(n_blocks - n_held, 0)} before a holdout of {holdout}",
            remedy=f"Give at least {n_held + MIN_FIT_BLOCKS + 1} labelled blocks, or shorten `training.holdout`",
        )
    return starts[n_blocks - n_held]


def fold_bounds(rows: Rows, n_folds: int) -> list[tuple[int, int]]:
    """Row ranges to validate on, oldest first; each fold is fitted on all rows before its range.

    The folds share the newer half of the blocks, so that every model has seen at least half of the rows: the
    losses then also serve as the reference of the packaged model, which is not judged by models fitted on a
    fifth of them.
    """
    starts = rows.block_starts()
    n_blocks = len(starts) - 1
    first = max(MIN_FIT_BLOCKS, n_blocks // 2)
    edges = np.linspace(first, n_blocks, min(n_folds, n_blocks - first) + 1).round().astype(int)
    return [(starts[a], starts[b]) for a, b in pairwise(edges)]


def cross_validate(rows: Rows, candidate: Candidate, spec: ModelSpec, *, seed: int) -> CandidateScore:
    """Losses of `candidate` by block, always fitted on older rows only.

    Raises:
        InputError: no block has a loss, for instance because none holds both classes.
    """
    bounds = fold_bounds(rows, recipe_of(spec).folds)
    folds = run_fits([partial(_fold_losses, rows, candidate, spec, start=a, stop=b, seed=seed) for a, b in bounds])
    blocks = [block for fold in folds for block in fold.blocks]
    if not blocks:
        raise InputError(
            f"candidate {candidate.name!r}: no block has a {spec.objective.metric}",
            remedy="Widen the window or `monitoring.block` until blocks hold every class",
        )
    return CandidateScore(
        candidate=candidate, blocks=tuple(blocks), loss=float(np.mean([block.loss for block in blocks])),
        reference=tuple(block for fold in folds for block in fold.reference),
    )  # fmt: skip


def permutation_importance(model: FittedModel, rows: Rows, spec: ModelSpec, *, seed: int) -> dict[str, float]:
    """By feature: how much the objective's loss rises on `rows` where its encoded columns are shuffled together."""
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(len(rows))[:IMPORTANCE_ROWS])
    matrix, label = model.encode(rows)[kept], rows.label[kept]
    metric = spec.objective.metric
    base = metric_loss(metric, label, model.score_encoded(matrix), spec)
    importance: dict[str, float] = {}
    owners = np.array(Encoder(model.features).column_features)
    for name in spec.feature_names():
        columns = np.flatnonzero(owners == name)
        shuffled = matrix.copy()
        shuffled[:, columns] = matrix[rng.permutation(len(matrix))][:, columns]
        loss = metric_loss(metric, label, model.score_encoded(shuffled), spec)
        importance[name] = loss - base if base is not None and loss is not None else 0.0
    return importance


def fit_challenger(rows: Rows, spec: ModelSpec, *, seed: int, name: str | None = None) -> tuple[FittedModel, Candidate]:
    """The recipe's model of `rows` for a backtest: candidate `name`, the only one, or the best by cross-validation.

    Raises:
        InputError: `name` is not a candidate of the spec, or nothing can be fitted.
    """
    candidates = recipe_of(spec).candidates
    named = [candidate for candidate in candidates if candidate.name == name]
    if name is not None and not named:
        raise InputError(
            f"{spec.model}: no candidate is called {name!r}",
            remedy=f"Use one of {', '.join(candidate.name for candidate in candidates)}",
        )
    chosen = (named or candidates)[0]
    if not named and len(candidates) > 1:
        scores = [cross_validate(rows, candidate, spec, seed=seed) for candidate in candidates]
        chosen = min(scores, key=lambda scored: scored.loss).candidate
    [model] = run_fits([partial(_fit, rows, chosen, spec, seed=seed)])
    return model, chosen


def _fit(
    rows: Rows,
    candidate: Candidate,
    spec: ModelSpec,
    *,
    seed: int,
    features: tuple[FeatureContract, ...] | None = None,
) -> FittedModel:
    return fit_model(rows, candidate, task=spec.task, declared=spec.features, seed=seed, features=features)


def _fold_losses(rows: Rows, candidate: Candidate, spec: ModelSpec, *, start: int, stop: int, seed: int) -> _Fold:
    past, ahead = rows.between(0, start), rows.between(start, stop)
    if spec.task != "regression" and len(np.unique(past.label)) < 2:
        return _Fold(blocks=[], reference=[])
    model = _fit(past, candidate, spec, seed=seed)
    scored = scored_rows(ahead, model.score(ahead))
    return _Fold(blocks=losses_by_block(scored, spec), reference=reference_losses(scored, spec))


def _blocks_within(rows: Rows, stretch: timedelta, block: timedelta) -> int:
    """Number of present blocks that begin within the newest `stretch`, and one at least."""
    starts = [np.datetime64(str(rows.blocks[at])) for at in rows.block_starts()[:-1]]
    first_kept = starts[-1] + np.timedelta64(block) - np.timedelta64(stretch)
    return max(1, int(np.sum(np.array(starts) >= first_kept)))
