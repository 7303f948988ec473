"""Which public keys an audit believes, and the checkpoints that they signed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from state.audit_sources import StoredNote
from state.keyring import KeyRing
from state.keys import Checkpoint, NoteError

Named = Sequence[tuple[int, str]]
"""Index of the record that names a key, and the key."""


def ring_of(named: Named, given: Sequence[str]) -> KeyRing | None:
    """The keys that notes are opened with: those that the log names, unless it names none of `given`.

    Raises:
        NoteError: a key that the log names is no public key.
    """
    if given and not any(vkey in given for _, vkey in named):
        return KeyRing([(-1, given[0])])
    return KeyRing(named) if named else None


def open_notes(notes: Iterable[StoredNote], ring: KeyRing) -> tuple[dict[int, Checkpoint], list[str]]:
    """The checkpoints whose signature holds, by size, and what is wrong with the others."""
    signed: dict[int, Checkpoint] = {}
    problems = []
    for note in notes:
        where = f"checkpoint over {note.size} records in {note.where}"
        try:
            checkpoint = ring.checkpoint(note.note, note.size)
        except NoteError as exc:
            problems.append(f"{where}: {exc}")
            continue
        if checkpoint.size != note.size:
            problems.append(f"{where}: it covers {checkpoint.size} records")
        elif signed.setdefault(note.size, checkpoint).root != checkpoint.root:
            problems.append(f"{where}: another one with a different root hash was signed, so the log was forked")
    return signed, problems


def check_keys(
    named: Named, given: Sequence[str], ring: KeyRing, notes: Sequence[StoredNote], signed: Mapping[int, Checkpoint]
) -> tuple[list[str], list[str]]:
    """Problems and notes about changes of the signing key.

    A later key is believed where `given` holds it or a believed key before it signed for it, an earlier one where a
    believed later key signed over it. Without `given` the log's own word is all there is: a change is told of.
    """
    if len(ring) < 2:
        return [], []
    vouched = [_vouched(ring, n, named[n][0], notes, signed) for n in range(1, len(ring))]
    said = [
        f"record {named[n][0]} changes the signing key to {named[n][1]}"
        for n in range(1, len(ring))
    ]  # fmt: skip
    lone = [
        f"{text}, and the key before it did not sign for it: ask whoever made the change."
        for text, yes in zip(said, vouched, strict=True)
        if not yes
    ]
    if not given:
        return [], lone
    believed = [vkey in given for _, vkey in named]
    for n in range(1, len(ring)):
        believed[n] = believed[n] or (believed[n - 1] and vouched[n - 1])
    for n in range(len(ring) - 2, -1, -1):
        covered = any(size > named[n + 1][0] and believed[ring.position(size)] for size in signed)
        believed[n] = believed[n] or (believed[n + 1] and covered)
    problems = [
        f"{text}, which is not a key that was given, and no key that is believed signed for it"
        for text, yes in zip(said, believed[1:], strict=True)
        if not yes
    ]
    if not believed[0]:
        problems.append(f"record {named[0][0]} names {named[0][1]}, and no key that was given signed over it")
    return problems, [] if problems else lone


def _vouched(
    ring: KeyRing, position: int, index: int, notes: Sequence[StoredNote], signed: Mapping[int, Checkpoint]
) -> bool:
    """Whether the key before signed a checkpoint that covers the record which names the next one."""
    before = ring.verifier(position - 1)
    for note in notes:
        if note.size <= index or note.size not in signed:
            continue
        try:
            if before.checkpoint(note.note).root == signed[note.size].root:
                return True
        except NoteError:
            continue
    return False
