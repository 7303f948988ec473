"""Domain time. Budgets, cooldowns, label age and dwell read it; leases and time-outs never do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from state.errors import InputError


class Clock(Protocol):
    """Domain time: timezone-aware UTC."""

    def now(self) -> datetime: ...


class WallClock:
    """Domain time is the time of day: live operation."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class ReplayClock:
    """Domain time that a replay moves forward by hand."""

    def __init__(self, start: datetime) -> None:
        self._now = utc(start)

    def now(self) -> datetime:
        return self._now

    def advance_to(self, at: datetime) -> None:
        """Move to `at`; domain time never runs backwards.

        Raises:
            InputError: `at` lies before the present domain time.
        """
        at = utc(at)
        if at < self._now:
            raise InputError(
                f"domain time cannot go back from {self._now.isoformat()} to {at.isoformat()}",
                remedy="Start a new workspace to replay an earlier period",
            )
        self._now = at


def utc(at: datetime) -> datetime:
    """`at` in UTC; a naive time is taken as UTC."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
