"""Identifiers that sort in time (UUIDv7, RFC 9562)."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from typing import Protocol


class IdSource(Protocol):
    """Where new ids come from; passed in, so that a simulation repeats exactly."""

    def new_id(self) -> str: ...


class Uuid7Source:
    """UUIDv7 from a clock in milliseconds and a random source; strictly rising within one source."""

    def __init__(
        self,
        rng: random.Random | None = None,
        milliseconds: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._rng = rng or random.SystemRandom()
        self._milliseconds = milliseconds
        self._last = 0

    def new_id(self) -> str:
        value = (self._milliseconds() & ((1 << 48) - 1)) << 80
        value |= self._rng.getrandbits(80)
        # Two ids of one millisecond still sort in the order in which they were made.
        value = max(value, self._last + 1)
        value = (value & ~(0xF << 76)) | (0x7 << 76)
        value = (value & ~(0x3 << 62)) | (0x2 << 62)
        if value <= self._last:
            value = self._last + 1
        self._last = value
        return str(uuid.UUID(int=value))
