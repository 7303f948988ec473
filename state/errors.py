"""Errors by what the caller may do next."""

from __future__ import annotations


class SteadyError(Exception):
    """Base of every error that Steadyhand raises on purpose."""


class RetryableError(SteadyError):
    """The same call may succeed later; nothing was half-done."""


class ToolUnavailable(RetryableError):
    """An outside system gave no answer in time."""


class StateUnavailable(RetryableError):
    """The database is locked or gone; repeat the whole transaction."""


class TerminalError(SteadyError):
    """The same call will fail again; change something first."""


class ToolRejected(TerminalError):
    """An outside system refused the request itself."""


class StaleRevision(TerminalError):
    """The lease has passed to a newer epoch, or the record changed; stop."""


class HeldByPolicy(SteadyError):
    """Policy held the action; this is not a failure."""


class ActionDenied(HeldByPolicy):
    """Policy denied the action."""


class ApprovalRequired(HeldByPolicy):
    """A person has to answer first."""


class InputError(SteadyError):
    """Bad input from a person: names the file, field or record, and the remedy.

    The command line prints `message` and `remedy` and exits with code 2.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy
