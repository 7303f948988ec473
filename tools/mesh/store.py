"""One YAML file per model with its Istio documents: on a laptop the source of truth, for people to read and to edit."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from state.canonical import sha256_hex
from state.errors import ToolRejected, ToolUnavailable
from tools.mesh.patch import Document

KINDS = ("VirtualService", "DestinationRule", "ServiceEntry")


class _Loader(yaml.CSafeLoader):
    """YAML as JSON sees it: a date in an annotation stays the text that it is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What Istio needs to know of one model."""

    virtual_service: Document
    destination_rule: Document
    service_entry: Document
    """The port of the route, and where each version's server listens."""
    others: tuple[Document, ...] = ()
    """Documents of somebody else in the same file, kept as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    documents: Documents
    revision: str
    """Digest of the file: it changes with every write, whoever made it."""


class DocumentStore:
    """`<folder>/<model>.yaml`, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def models(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.yaml"))

    def read(self, model: str) -> Stored | None:
        """The stored documents; None where the model has none.

        Raises:
            ToolRejected: the file is not what it should be; the message names it.
        """
        data = self._bytes(model)
        return None if data is None else Stored(documents=self._parse(model, data), revision=_revision(data))

    def write(self, model: str, documents: Documents, *, expected: str | None) -> Stored:
        """Replace the file that was read at revision `expected` (None: there was none).

        Raises:
            ToolUnavailable: somebody wrote in between; nothing is written, read again.
        """
        content = [documents.virtual_service, documents.destination_rule, documents.service_entry, *documents.others]
        data = yaml.dump_all(content, Dumper=yaml.CSafeDumper, sort_keys=False, encoding="utf-8", allow_unicode=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(model)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        current = self._bytes(model)
        found = None if current is None else _revision(current)
        if found != expected:
            temporary.unlink()
            raise ToolUnavailable(f"{path}: revision {found} is not {expected}, somebody wrote in between")
        temporary.rename(path)
        _sync_folder(self._folder)
        return Stored(documents=documents, revision=_revision(data))

    @contextlib.contextmanager
    def lock(self, model: str) -> Iterator[None]:
        """Keep other writers of ours out; an editor does not ask, hence the revision."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{model}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, model: str) -> Path:
        return self._folder / f"{model}.yaml"

    def _bytes(self, model: str) -> bytes | None:
        try:
            return self._path(model).read_bytes()
        except FileNotFoundError:
            return None

    def _parse(self, model: str, data: bytes) -> Documents:
        path = self._path(model)
        try:
            # A subclass of the safe loader: it makes no objects.
            content = list(yaml.load_all(data, _Loader))
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            raise ToolRejected(f"{path}: not YAML: {exc}") from exc
        found: dict[str, Any] = {}
        others = []
        for document in content:
            kind = document.get("kind") if isinstance(document, dict) else None
            ours = kind in KINDS and kind not in found and (document.get("metadata") or {}).get("name") == model
            if ours:
                found[str(kind)] = document
            else:
                others.append(document)
        missing = [kind for kind in KINDS if kind not in found]
        if missing:
            raise ToolRejected(f"{path}: no {missing[0]} named {model!r}")
        return Documents(
            virtual_service=found["VirtualService"],
            destination_rule=found["DestinationRule"],
            service_entry=found["ServiceEntry"],
            others=tuple(others),
        )


def _revision(data: bytes) -> str:
    return sha256_hex(data)[:16]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
