"""Pipelines compiled to KFP's intermediate representation: the document that runs on a laptop and on a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from state.errors import TerminalError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kfp's own deprecations at import
    from kfp import compiler

    from tools.pipelines.components import backtest_pipeline, train_pipeline

PIPELINES: Mapping[str, Any] = {"train": train_pipeline, "backtest": backtest_pipeline}

# What the local runner silently ignores or runs wrongly (kfp 2.16.1), by the key of the document.
_REFUSED = {
    "triggerPolicy": "a condition or an exit handler",
    "retryPolicy": "a retry",
    "parameterIterator": "a loop",
    "artifactIterator": "a loop",
}


def compile_pipeline(name: str, path: Path) -> Path:
    """Write pipeline `name` to `path` as YAML and return it.

    Raises:
        TerminalError: it is not a straight line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(PIPELINES[name], str(path))
    check_straight(path)
    return path


def check_straight(path: Path) -> None:
    """Accept the compiled pipeline at `path` where every task of it simply follows others.

    Raises:
        TerminalError: it holds a condition, loop, retry or exit handler; the message names the task.
    """
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    for document in documents:
        for name, task in _tasks(document):
            for key, what in _REFUSED.items():
                if key in task:
                    raise TerminalError(f"{path.name}: task {name!r} has {what}; pipelines here are straight lines")


def _tasks(node: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        dag = node.get("dag")
        if isinstance(dag, Mapping):
            yield from dag.get("tasks", {}).items()
        for child in node.values():
            yield from _tasks(child)
