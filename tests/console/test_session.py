"""SIGTERM ends a command wherever it stands."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress

import pytest

from console.cli.session import _ended_by_term


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


def test_sigterm_ends_the_block_and_the_handler_goes_with_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _ended_by_term():
        terminate()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_a_callback_that_swallows_everything_is_not_lost() -> None:
    def callback() -> None:
        with suppress(BaseException):
            terminate()

    async def replay() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(1)

    with pytest.raises(KeyboardInterrupt), _ended_by_term():
        asyncio.run(replay())
