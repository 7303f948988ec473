from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from state.errors import InputError, ToolUnavailable
from tools.notify import AppriseNotifier

# Apprise loads its plugins at first use, and a helper of theirs imports a module that Python 3.13 drops.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")

SECRET = "tok3n-of-the-channel"


class Inbox:
    """A loopback webhook that remembers what it got and answers with `status`."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = 200
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if inbox.status == 200:
                    inbox.messages.append(json.loads(body))
                self.send_response(inbox.status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def channel(self) -> str:
        return f"json://user:{SECRET}@127.0.0.1:{self.server.server_port}/{SECRET}?+X-Token={SECRET}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.close()


@pytest.fixture
def second() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.close()


def test_a_message_reaches_the_channel_with_its_title_and_text(inbox: Inbox, tmp_path: Path) -> None:
    notifier = AppriseNotifier([inbox.channel], sent=tmp_path / "sent")

    assert notifier.send(title="churn degraded", text="AUC 0.61", key="k1") is True

    assert [(m["title"], m["message"]) for m in inbox.messages] == [("churn degraded", "AUC 0.61")]


def test_a_key_is_sent_once_even_by_a_new_process(inbox: Inbox, tmp_path: Path) -> None:
    AppriseNotifier([inbox.channel], sent=tmp_path / "sent").send(title="a", text="b", key="k1")

    again = AppriseNotifier([inbox.channel], sent=tmp_path / "sent")
    assert again.send(title="a", text="b", key="k1") is True
    assert again.send(title="a", text="b", key="k2") is True

    assert len(inbox.messages) == 2


def test_without_a_channel_nothing_is_sent_and_nothing_is_noted(tmp_path: Path) -> None:
    assert AppriseNotifier([], sent=tmp_path / "sent").send(title="a", text="b", key="k") is False
    assert not (tmp_path / "sent").exists()


def test_after_a_partial_failure_only_the_failed_channel_is_tried_again(
    inbox: Inbox, second: Inbox, tmp_path: Path
) -> None:
    notifier = AppriseNotifier([inbox.channel, second.channel], sent=tmp_path / "sent")
    second.status = 500
    with pytest.raises(ToolUnavailable, match="json-2"):
        notifier.send(title="a", text="b", key="k")

    second.status = 200
    notifier.send(title="a", text="b", key="k")

    assert (len(inbox.messages), len(second.messages)) == (1, 1)


def test_no_secret_is_logged_stored_or_raised(inbox: Inbox, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = AppriseNotifier([inbox.channel], sent=tmp_path / "sent")
    with caplog.at_level(logging.DEBUG):
        notifier.send(title="a", text="b", key="k1")
        inbox.status = 500
        with pytest.raises(ToolUnavailable) as refused:
            notifier.send(title="a", text="b", key="k2")

    said = caplog.text + str(refused.value) + (tmp_path / "sent").read_text()
    assert "json-1" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"nosuchscheme://{SECRET}", id="unknown-scheme"),
        pytest.param(SECRET, id="no-scheme"),
    ],
)
def test_a_bad_channel_is_refused_by_its_place_without_its_secret(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match="channel 1") as refused:
        AppriseNotifier([url], sent=tmp_path / "sent")

    assert SECRET not in str(refused.value) + caplog.text
