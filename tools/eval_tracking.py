"""Results of an evaluation as MLflow runs: imported only where somebody asks for them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, RunTag
from pydantic import JsonValue

from state.errors import InputError
from tools.tracking import Tracking, mlflow_errors

EXPERIMENT = "steadyhand-eval"
RESULT = "result.json"


def open_store(place: str) -> Tracking:
    """The tracking store at a URI, or the embedded one in a folder, which is made where there is none.

    The experiment is there afterwards, so a store that cannot be written is found before anything is worth logging.

    Raises:
        InputError: the folder is a file.
        ToolUnavailable: MLflow gives no answer.
        ToolRejected: the URI or the store is no good.
    """
    if "://" not in place and not Path(place).is_dir() and Path(place).exists():
        raise InputError(f"{place} is a file", remedy="Name a folder for the store, or a tracking URI")
    with mlflow_errors(place):
        store = Tracking(place) if "://" in place else Tracking.embedded(Path(place))
        store.experiment(EXPERIMENT)
    return store


def log_result(
    store: Tracking, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str], document: JsonValue
) -> str:
    """Log one scenario as a finished run with its document as the artifact `result.json`; its run id.

    Raises:
        ToolUnavailable: MLflow gives no answer.
        ToolRejected: it refuses the run.
    """
    with mlflow_errors(store.uri):
        run = store.client.create_run(store.experiment(EXPERIMENT), run_name=name)
        run_id: str = run.info.run_id
        now = int(time.time() * 1000)
        store.client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value[:5_000]) for key, value in tags.items()],
        )
        store.client.log_text(run_id, json.dumps(document, indent=1, sort_keys=True), RESULT)
        store.client.set_terminated(run_id, "FINISHED")
    return run_id
