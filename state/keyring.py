"""Which key signs the log where: the first record names one, and a later record may name another."""

from __future__ import annotations

from collections.abc import Sequence

from state.keys import Checkpoint, Verifier


class KeyRing:
    """The public keys of a log in order; each signs the checkpoints that cover the record which names it."""

    def __init__(self, named: Sequence[tuple[int, str]]) -> None:
        """`named` holds the index of the naming record and the vkey; the first key signs from the start.

        Raises:
            NoteError: one of them is no public key.
        """
        self._keys = [(index, Verifier(vkey)) for index, vkey in named]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def current(self) -> str | None:
        """The vkey that signs now; None where the log names none."""
        return self._keys[-1][1].vkey if self._keys else None

    def position(self, size: int) -> int:
        """Which key signs a checkpoint over `size` records."""
        return max((n for n, (index, _) in enumerate(self._keys) if index < size), default=0)

    def verifier(self, position: int) -> Verifier:
        return self._keys[position][1]

    def checkpoint(self, note: str, size: int) -> Checkpoint:
        """The checkpoint in a note over `size` records.

        Raises:
            NoteError: malformed, or not signed by the key that the log names for it.
        """
        return self.verifier(self.position(size)).checkpoint(note)
