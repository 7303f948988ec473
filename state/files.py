"""Files that are written whole, once, and then never change."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from state.errors import InputError, StateUnavailable


def write_once(path: Path, content: bytes, *, mode: int = 0o644) -> bool:
    """Make `path` with `content`, durable on return; False if the path exists already, whatever it holds.

    Of two writers at the same time one wins, and no reader sees half a file.

    Raises:
        InputError: the folder cannot be written to.
        StateUnavailable: the disk is full or does not answer.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write_once(path, content, mode)
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror}", remedy="Name a writable folder") from exc
    except OSError as exc:
        raise StateUnavailable(f"{path} cannot be written: {exc.strerror}") from exc


def _write_once(path: Path, content: bytes, mode: int) -> bool:
    if path.exists():
        return False
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, because a rename would replace what another process made in the meantime.
            os.link(name, path)
        except FileExistsError:
            return False
    finally:
        Path(name).unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
