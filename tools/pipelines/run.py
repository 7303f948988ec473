"""The one child process of a local pipeline run: `python -m tools.pipelines.run <directory> <parent pid>`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from tools.pipelines.compile import compile_pipeline
from tools.pipelines.journal import ABANDONED, RESULT, describe_failure, read_log, write_json
from tools.pipelines.process import end_with

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kfp's own deprecations at import
    from kfp import components, local


def main(directory: Path, parent: int) -> int:
    """Run the pipeline that `request.json` asks for and leave `result.json` behind."""
    end_with(parent, before=(directory / ABANDONED).touch)
    if os.getppid() != parent:
        return 1
    request = json.loads((directory / "request.json").read_text())
    try:
        outputs = _run(request["pipeline"], request["parameters"], directory)
    except RuntimeError as exc:
        # The runner's exception names the task; why it failed stands in the log only.
        sys.stdout.flush()
        write_json(directory / RESULT, {"status": "failed", "error": describe_failure(str(exc), read_log(directory))})
        return 1
    finally:
        _remove_intermediates(directory)
    write_json(directory / RESULT, {"status": "succeeded", "outputs": outputs})
    return 0


def _run(pipeline: str, parameters: dict[str, Any], directory: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = components.load_component_from_file(str(compile_pipeline(pipeline, directory / "pipeline.yaml")))
        # The root ends in the key: two runs never share a folder, and a run is found by its key alone.
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(directory), raise_on_error=True)
        task = compiled(**parameters)
    outputs: dict[str, Any] = json.loads(task.outputs["Output"])
    if "package" in outputs:
        kept = directory / "package"
        shutil.rmtree(kept, ignore_errors=True)
        Path(outputs["package"]).rename(kept)
        outputs["package"] = str(kept)
    return outputs


def _remove_intermediates(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and path.name != "package":
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
