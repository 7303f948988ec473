"""Messages to people: mail, chat and pagers through Apprise.

A channel is a URL that holds secrets (tokens, passwords), so no URL is ever logged, stored or put into an error:
a channel is called by its scheme and place, for instance `mailto-1`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import apprise

from state.errors import InputError, ToolUnavailable

log = logging.getLogger(f"steadyhand.{__name__}")

_PIECES = re.compile(r"[^/:@?&=#,;]+")
_TRANSPORT = "urllib3.connectionpool"


class _NoSecrets(logging.Filter):
    """Withholds the records of a client library that would name a channel's secret."""

    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        # Apprise writes whole URLs, changed in its own ways: nothing of it is kept.
        if record.name == "apprise":
            return False
        message = record.getMessage()
        return not any(secret in message for secret in self._secrets)


class AppriseNotifier:
    """The Notifier port: every message to every channel, once per key and channel.

    A process that dies between the delivery and its note sends that one message again.
    """

    def __init__(self, channels: Sequence[str], *, sent: Path) -> None:
        """`sent` is the file in which delivered keys are noted.

        Raises:
            InputError: a channel is not a URL that Apprise knows; the message names its place and scheme only.
        """
        self._sent = sent
        self._channels: dict[str, apprise.Apprise] = {}
        withhold = _NoSecrets(frozenset(piece for url in channels for piece in _secrets_of(url)))
        if channels:
            logging.getLogger("apprise").addFilter(withhold)
            logging.getLogger(_TRANSPORT).addFilter(withhold)
        for place, url in enumerate(channels, start=1):
            scheme = url.partition("://")[0] if "://" in url else "no scheme"
            target = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Steadyhand", async_mode=False))
            if not target.add(url) or len(target) == 0:
                raise InputError(
                    f"notification channel {place} ({scheme}) is not a URL that Apprise knows",
                    remedy="Write it as Apprise documents it, for instance mailto://user:password@example.org",
                )
            self._channels[f"{scheme}-{place}"] = target

    def send(self, *, title: str, text: str, key: str) -> bool:
        """Deliver one message to every channel that has not had `key`; False where no channel is configured.

        Raises:
            ToolUnavailable: a channel did not take it; the next call tries only those that are left.
        """
        if not self._channels:
            return False
        had = self._delivered(key)
        failed = []
        for name, target in self._channels.items():
            if name in had:
                continue
            if target.notify(title=title, body=text):
                self._note(key, name)
            else:
                failed.append(name)
                log.warning("channel %s did not take message %s", name, key)
        if failed:
            raise ToolUnavailable(f"notification channel {', '.join(failed)} did not take message {key}")
        return True

    def _delivered(self, key: str) -> set[str]:
        try:
            lines = self._sent.read_text().splitlines()
        except FileNotFoundError:
            return set()
        return {name for noted, _, name in (line.partition("\t") for line in lines) if noted == key}

    def _note(self, key: str, channel: str) -> None:
        self._sent.parent.mkdir(parents=True, exist_ok=True)
        with self._sent.open("a") as stream:
            stream.write(f"{key}\t{channel}\n")
            stream.flush()
            os.fsync(stream.fileno())


def _secrets_of(url: str) -> list[str]:
    """Everything in a URL but its scheme and its host, if long enough to be told from ordinary words."""
    rest = url.partition("://")[2]
    user, _, after = rest.rpartition("@")
    pieces = _PIECES.findall(user) + _PIECES.findall(after)[1:]
    return [form for piece in pieces for form in (piece, unquote(piece)) if len(form) >= 6]
