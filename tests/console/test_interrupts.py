"""Ctrl-C and SIGTERM end a command wherever it stands, once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from console import interrupts, up
from console.interrupts import ended_by_signals, left_to_the_event_loop
from state.errors import StateUnavailable

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@BOTH
def test_a_signal_ends_the_block_and_the_handlers_go_with_it(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        send(number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@BOTH
def test_impatience_does_not_disturb_the_ending(number: signal.Signals) -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        try:
            send(signal.SIGINT)
        finally:
            send(number)
            ended = True
    assert ended


def test_a_signal_that_was_swallowed_may_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "UNWINDING_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        with suppress(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGINT)


@BOTH
def test_a_signal_in_a_callback_that_swallows_everything_is_not_lost(number: signal.Signals) -> None:
    def callback() -> None:
        with suppress(BaseException):
            send(number)

    async def replay() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(1)

    ended = False
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        try:
            with left_to_the_event_loop():
                asyncio.run(replay())
        finally:
            send(signal.SIGINT)
            ended = True
    assert ended


def test_ctrl_c_that_is_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_signals():
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), ended_by_signals():
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_servers_end_before_the_lease_is_given_back_and_even_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def let_go(*_: object) -> None:
        done.append("lease")
        raise StateUnavailable("the database is locked")

    monkeypatch.setattr(up, "stop_serving", lambda *_: done.append("servers"))
    monkeypatch.setattr(up, "let_go", let_go)
    running: Any = SimpleNamespace(
        stack=ExitStack(), crew=None, spec=SimpleNamespace(model="loans"), workspace=SimpleNamespace(home=None)
    )
    running.stack.callback(done.append, "closed")
    with pytest.raises(StateUnavailable):
        up.shut_down(running, keep=False)
    assert done == ["servers", "lease", "closed"]
