from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evals.world.platform import build
from tests.contract.support import Side, new_world
from tools.notify import AppriseNotifier
from tools.ports import Notifier

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    side: Side[Notifier]
    n_received: Callable[[], int]
    mute: Side[Notifier]
    """The same without any channel."""


@pytest.fixture(params=["world", "laptop"])
def reach(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reach]:
    if request.param == "world":
        world, silent = new_world(tmp_path / "w"), new_world(tmp_path / "s")
        silent.notifier_channels = 0
        yield Reach(
            side=Side(open=lambda: build(world).notifier),
            n_received=lambda: len(world.state.messages),
            mute=Side(open=lambda: build(silent).notifier),
        )
        return
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    channel = f"json://127.0.0.1:{server.server_port}/"
    yield Reach(
        side=Side(open=lambda: AppriseNotifier([channel], sent=tmp_path / "sent")),
        n_received=lambda: len(bodies),
        mute=Side(open=lambda: AppriseNotifier([], sent=tmp_path / "sent")),
    )
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_key_is_delivered_once_even_by_a_new_process(reach: Reach) -> None:
    assert [reach.side.open().send(title="t", text="x", key="k") for _ in range(2)] == [True, True]

    assert reach.n_received() == 1


def test_different_keys_are_different_messages(reach: Reach) -> None:
    notifier = reach.side.open()
    for key in ("k1", "k2"):
        notifier.send(title="t", text="x", key=key)

    assert reach.n_received() == 2


def test_without_a_channel_the_answer_is_false(reach: Reach) -> None:
    assert reach.mute.open().send(title="t", text="x", key="k") is False
    assert reach.n_received() == 0
