"""Ctrl-C and SIGTERM: the first one ends what runs, and those right after it do not disturb the ending."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

UNWINDING_SECONDS = 5.0
"""So long after the first one more signals are impatience; later, the first was lost in a callback that swallowed it."""


class _Once:
    """A handler that raises KeyboardInterrupt; a second one in the midst of a rollback would leave it half done."""

    def __init__(self) -> None:
        self.raised_at = float("-inf")

    def __call__(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002  # what a handler is given
        now = time.monotonic()
        if now - self.raised_at > UNWINDING_SECONDS:
            self.raised_at = now
            raise KeyboardInterrupt


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block alike: with servers and Envoy stopped and the lease given back."""
    once = _Once()

    def terminate(signum: int, frame: FrameType | None) -> None:
        # While an event loop runs, Ctrl-C is its to handle: an exception raised here could end in a callback
        # of a library that swallows it, and the signal would be lost.
        of_ctrl_c = signal.getsignal(signal.SIGINT)
        (of_ctrl_c if callable(of_ctrl_c) else once)(signum, frame)

    of_term, of_ctrl_c = signal.signal(signal.SIGTERM, terminate), signal.getsignal(signal.SIGINT)
    if of_ctrl_c is signal.default_int_handler:  # whoever started us with Ctrl-C ignored means it to be ignored
        signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, of_term)
        signal.signal(signal.SIGINT, of_ctrl_c)


@contextmanager
def left_to_the_event_loop() -> Iterator[None]:
    """Let an event loop that runs in the block take Ctrl-C: asyncio does where it finds Python's own handler."""
    once = signal.getsignal(signal.SIGINT)
    if not isinstance(once, _Once):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        once.raised_at = time.monotonic()
        raise
    finally:
        signal.signal(signal.SIGINT, once)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended; processes that it did not get to would stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
