"""What the two controls scored, kept in the workspace under a digest of everything that it rests on."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from state.canonical import digest
from state.spec import ModelSpec
from tools.controls import ControlScores, Refit, Schedule, refit_times
from tools.datastore import replace_bytes

FORMAT = 1
ROWS = ("history", "predictions", "outcomes")
"""Folders of the workspace whose files the controls are fitted and measured on."""


def key_of(
    home: Path, spec: ModelSpec, *, package: Path, start: datetime, end: datetime, schedule: Schedule
) -> str:  # fmt: skip
    """Digest of rows, package, spec, window and schedule: equal where the controls would come out equal."""
    times = refit_times(start, end, schedule.every)
    files = {
        str(path.relative_to(root.parent)): _sha256(path)
        for root in [*(home / name / spec.model for name in ROWS), package]
        for path in _files(root)
    }
    return digest(
        {
            "format": FORMAT,
            "release": metadata.version("steadyhand"),
            "spec": spec.model_dump(mode="json"),
            "window": [start.isoformat(), end.isoformat()],
            "candidate": schedule.candidate,
            "excluded": {at.isoformat(): sorted(schedule.excluded_days(at)) for at in times},
            "files": files,
        }
    )


def kept(home: Path, model: str, key: str) -> ControlScores | None:
    """The scores under that digest; None where there are none, or where the file is damaged."""
    try:
        with _path(home, model, key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            always = arrays["always"]
            refits = json.loads(str(arrays["refits"]))
            return ControlScores(
                times_us=arrays["times_us"], version=arrays["version"], label=arrays["label"], served=arrays["served"],
                never=arrays["never"], always=always if bool(arrays["has_always"]) else None,
                refits=tuple(Refit(at=datetime.fromisoformat(at), n_rows=n, error=error) for at, n, error in refits),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def keep(home: Path, model: str, key: str, scores: ControlScores) -> None:
    """Keep the scores under that digest, in the place of older ones of the model."""
    refits = [[refit.at.isoformat(), refit.n_rows, refit.error] for refit in scores.refits]
    buffer = io.BytesIO()
    np.savez(
        buffer, times_us=scores.times_us, version=scores.version, label=scores.label, served=scores.served,
        never=scores.never, always=scores.always if scores.always is not None else np.zeros(0),
        has_always=np.array(scores.always is not None), refits=np.array(json.dumps(refits)),
    )  # fmt: skip
    path = _path(home, model, key)
    replace_bytes(path, buffer.getvalue())
    for older in path.parent.glob("*.npz"):
        if older != path:
            older.unlink(missing_ok=True)


def _path(home: Path, model: str, key: str) -> Path:
    return home / "controls" / model / f"{key}.npz"


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
