"""The log's signing key, signed notes and checkpoint text.

Source: C2SP signed-note (notes, key ids, vkeys), C2SP tlog-checkpoint (text); the private key's one line is
that of Go's `golang.org/x/mod/sumdb/note`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from state.errors import InputError
from state.files import write_once

ED25519 = b"\x01"
PRIVATE = "PRIVATE+KEY+"


class NoteError(ValueError):
    """A note, checkpoint text or key that is malformed or not signed by the key asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a signature vouches for: the first `size` records of the log named `origin` hash to `root`."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the three lines; extension lines after them are signed too, and carry nothing for us.

        Raises:
            NoteError: not the text of a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or lines[-1]:
            raise NoteError("a checkpoint has an origin, a size and a root hash, one a line")
        if not (lines[1].isascii() and lines[1].isdigit()) or str(int(lines[1])) != lines[1]:
            raise NoteError(f"{lines[1]!r} is not the size of a log")
        root = _from_base64(lines[2])
        if len(root) != 32:
            raise NoteError(f"{lines[2]!r} is not a SHA-256 root hash")
        return cls(origin=lines[0], size=int(lines[1]), root=root)


class Verifier:
    """Checks signed notes against one public key in vkey form."""

    def __init__(self, vkey: str) -> None:
        """Read `<name>+<key id>+<key>`.

        Raises:
            NoteError: not a vkey of an Ed25519 key, or its id does not fit its key.
        """
        name, _, rest = vkey.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _from_base64(encoded)
        if not valid_name(name) or raw[:1] != ED25519 or len(raw) != 33:
            raise NoteError(f"{vkey!r} is not the vkey of an Ed25519 key")
        self.name = name
        self.vkey = vkey.strip()
        self._id = _key_id(name, raw[1:])
        self._key = Ed25519PublicKey.from_public_bytes(raw[1:])
        if self._id.hex() != key_id:
            raise NoteError(f"{vkey!r} carries key id {key_id}, but its key has {self._id.hex()}")

    def open(self, note: str) -> str:
        """The text of a note that this key has signed; other keys' signatures do not matter.

        Raises:
            NoteError: malformed, not signed by this key, or the signature is wrong.
        """
        text, separator, signatures = note.rpartition("\n\n")
        text += "\n"
        if not separator or not signatures.endswith("\n"):
            raise NoteError("not a signed note: no signature lines after an empty line")
        for line in signatures[:-1].split("\n"):
            dash, _, rest = line.partition(" ")
            name, _, encoded = rest.partition(" ")
            if dash != "—":
                raise NoteError(f"not a signature line: {line!r}")
            blob = _from_base64(encoded)
            if name != self.name or blob[:4] != self._id:
                continue
            try:
                self._key.verify(blob[4:], text.encode())
            except InvalidSignature as exc:
                raise NoteError(f"the signature of {self.name} does not fit the text") from exc
            return text
        raise NoteError(f"not signed by {self.vkey}")

    def checkpoint(self, note: str) -> Checkpoint:
        """The checkpoint in a note that this key has signed.

        Raises:
            NoteError: as `open`, or the text is no checkpoint of the log that the key is named after.
        """
        found = Checkpoint.parse(self.open(note))
        if found.origin != self.name:
            raise NoteError(f"it is a checkpoint of log {found.origin!r}, not of {self.name!r}")
        return found


class Signer:
    """Signs notes. The key's name is also the log's origin."""

    def __init__(self, name: str, seed: bytes) -> None:
        if not valid_name(name):
            raise NoteError(f"{name!r} cannot name a key: no spaces and no plus signs")
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        self._id = _key_id(name, public)
        self.vkey = f"{name}+{self._id.hex()}+{base64.b64encode(ED25519 + public).decode()}"
        """The public key, for people who verify."""

    def sign(self, text: str) -> str:
        """The signed note; the same text gives the same note."""
        return f"{text}\n{self._line(text)}"

    def cosign(self, note: str) -> str:
        """The note with this key's signature beside those that it has."""
        return note + self._line(note.rpartition("\n\n")[0] + "\n")

    def _line(self, text: str) -> str:
        signature = base64.b64encode(self._id + self._key.sign(text.encode())).decode()
        return f"— {self.name} {signature}\n"

    def verifier(self) -> Verifier:
        return Verifier(self.vkey)


def load_or_create(path: Path, name: str) -> Signer:
    """The signer in `path`, made with mode 0600 where there is none; `name` matters only to a new one.

    Raises:
        InputError: the file is not a key, others can read it, or the folder cannot be written to.
    """
    if not path.exists():
        if not valid_name(name):
            raise InputError(f"{name!r} cannot name a key", remedy="Choose a name without spaces and plus signs")
        seed = Ed25519PrivateKey.generate().private_bytes_raw()
        key_id = Signer(name, seed)._id.hex()
        line = f"{PRIVATE}{name}+{key_id}+{base64.b64encode(ED25519 + seed).decode()}\n"
        write_once(path, line.encode(), mode=0o600)
    return load(path)


def load(path: Path) -> Signer:
    """The signer in `path`.

    Raises:
        InputError: the file is missing, not a key, or readable by others.
    """
    try:
        mode = path.stat().st_mode
        line = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} cannot be read as a signing key", remedy="Restore it from a backup") from exc
    if mode & 0o077:
        raise InputError(f"{path} can be read by others (mode {mode & 0o777:04o})", remedy=f"chmod 600 {path}")
    try:
        return _parse_private(line)
    except NoteError as exc:
        raise InputError(f"{path} is not a signing key: {exc}", remedy="Restore it from a backup") from exc


def valid_name(name: str) -> bool:
    """Whether `name` may name a key."""
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def _parse_private(line: str) -> Signer:
    parts = line.removeprefix(PRIVATE).split("+", 2)
    if not line.startswith(PRIVATE) or len(parts) != 3:
        raise NoteError(f"it does not begin with {PRIVATE}")
    raw = _from_base64(parts[2])
    if raw[:1] != ED25519 or len(raw) != 33:
        raise NoteError("it holds no Ed25519 key")
    signer = Signer(parts[0], raw[1:])
    if signer._id.hex() != parts[1]:
        raise NoteError("its key id does not fit its key")
    return signer


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise NoteError(f"{text!r} is not base64") from exc
