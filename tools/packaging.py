"""The model package: `model.onnx`, `contract.json`, `profile.bin` and their `SHA256SUMS`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from state.contract import Contract, Encoder
from state.errors import TerminalError, ToolRejected
from tools.onnx_session import open_session, score_session
from tools.training_rows import encoder_columns

Floats = npt.NDArray[np.float64]

PARTS = ("model.onnx", "contract.json", "profile.bin")
SUMS = "SHA256SUMS"
BATCH_ROWS = 20_000
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package whose files have their stored digests."""

    directory: Path
    contract: Contract
    sha256: str
    """Digest of `SHA256SUMS`, and so of the whole package."""


def write_package(directory: Path, *, model: bytes, contract: Contract, profile: bytes) -> Package:
    """Write the package at `directory`, replacing what stands there; a reader never sees half of one."""
    parts = dict(zip(PARTS, (model, contract.to_json(), profile), strict=True))
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items()))
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, data in {**parts, SUMS: sums.encode()}.items():
        (fresh / name).write_bytes(data)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    return check_package(directory)


def check_package(directory: Path) -> Package:
    """The package at `directory`.

    Raises:
        ToolRejected: a file is missing or its digest is another than `SHA256SUMS` says; the message names it.
    """
    sums = _read(directory / SUMS)
    listed = _parse_sums(sums, directory)
    for name, expected in listed.items():
        found = hashlib.sha256(_read(directory / name)).hexdigest()
        if found != expected:
            raise ToolRejected(f"{directory / name} has SHA-256 {found[:16]}..., and {SUMS} says {expected[:16]}...")
    try:
        contract = Contract.from_json(_read(directory / "contract.json"))
    except TerminalError as exc:
        raise ToolRejected(f"{directory}: {exc}") from exc
    if contract.profile_sha256 not in (None, listed["profile.bin"]):
        raise ToolRejected(f"{directory / 'profile.bin'} is not the profile that contract.json names")
    return Package(directory=directory, contract=contract, sha256=hashlib.sha256(sums).hexdigest())


class PackageScorer:
    """Scores frames with a package, in batches of bounded size."""

    def __init__(self, directory: Path) -> None:
        self.package = check_package(directory)
        self.contract = self.package.contract
        self._encoder = Encoder(self.contract.features)
        self._session = open_session((directory / "model.onnx").read_bytes())

    def score(self, frame: pl.DataFrame) -> Floats:
        """Probability of class 1, shape `(n_rows,)`; of each class, `(n_rows, n_classes)`; or the number, `(n_rows,)`.

        Raises:
            ToolRejected: `frame` lacks a feature of the contract.
        """
        absent = [feature.name for feature in self.contract.features if feature.name not in frame.columns]
        if absent:
            raise ToolRejected(f"the rows have no column {', '.join(absent)}, which {self.contract.model} needs")
        names = [feature.name for feature in self.contract.features]
        parts = [
            score_session(self._session, self._encoder.encode(encoder_columns(chunk, names)), task=self.contract.task)
            for chunk in frame.iter_slices(BATCH_ROWS)
        ]
        if parts:
            return np.concatenate(parts)
        return np.zeros((0, len(self.contract.classes or ())) if self.contract.task == "multiclass" else 0)


def _parse_sums(sums: bytes, directory: Path) -> dict[str, str]:
    listed: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ToolRejected(f"{directory / SUMS} has the line {line[:80]!r}")
        listed[match[2]] = match[1]
    absent = [name for name in PARTS if name not in listed]
    if absent:
        raise ToolRejected(f"{directory / SUMS} does not list {', '.join(absent)}")
    return listed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ToolRejected(f"{path} cannot be read: {exc.strerror}") from exc
