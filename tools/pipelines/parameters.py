"""What the pipelines take, without importing kfp.

Every pipeline: `root` (the workspace: a folder, or a URI on a cluster), `spec` (a `ModelSpec` as JSON), `start` (ISO
time, or "" for the recipe's window), `as_of` (labels known by then), `excluded_days` (ISO dates), `seed`.
`train` adds `end`, `key`, `tracking_uri` ("" for the MLflow embedded in `root`) and returns `mlflow_run_id, package,
package_sha256, metrics, cv, gates, candidates, chosen, n_rows, holdout_rows, data_sha256, trained_from, trained_until,
reference_blocks, importance, onnx_parity_error`; a reference block has `block, loss, n` and, of a binary task, `labels`:
rows and labels of class 1 by score cell (`LabelCounts.cells`), out of sample like its loss, and `segments`: losses inside
and outside each of them (`SegmentLoss.cells`).
`backtest` adds `fit_until` (the recipe is fitted on rows before it), `compare_from`, `compare_until`,
`champion_package` (a folder, or ""), `challenger_package` (a folder scored in the place of a fit, or ""),
`recipe_candidate` (a candidate's name, or "" for the best one) and returns `metric, candidate, blocks, metrics,
champion_metrics, gates, fit_rows, compare_rows, data_sha256, champion_sha256, challenger_sha256`; a block has `block, n`,
`champion_loss, challenger_loss` and `segments`: both losses of each segment.
Null stands for the default. Other parameters, such as digests that only make the key, are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from state.errors import ToolRejected
from tools.ports import PipelineRequest

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "train": ("root", "spec", "as_of", "seed", "key"),
    "backtest": ("root", "spec", "as_of", "seed", "fit_until", "compare_from", "compare_until"),
}
DEFAULTS: Mapping[str, Mapping[str, JsonValue]] = {
    "train": {"start": "", "end": "", "excluded_days": [], "tracking_uri": ""},
    "backtest": {
        "start": "",
        "excluded_days": [],
        "champion_package": "",
        "challenger_package": "",
        "recipe_candidate": "",
    },
}


def complete_parameters(request: PipelineRequest, ours: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The parameters that the pipeline runs with: `ours`, then the request's, then the defaults.

    Raises:
        ToolRejected: one is missing.
    """
    required, defaults = REQUIRED[request.pipeline], DEFAULTS[request.pipeline]
    given = {name: value for name, value in {**ours, **request.parameters}.items() if value is not None}
    absent = [name for name in required if name not in given]
    if absent:
        raise ToolRejected(f"pipeline {request.pipeline!r} needs the parameter {', '.join(absent)}")
    return {name: given.get(name, defaults.get(name)) for name in (*required, *defaults)}
