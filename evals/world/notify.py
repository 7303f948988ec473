"""The world's notifier: every message that a person would have got."""

from __future__ import annotations

from evals.world.faults import port_call
from evals.world.records import Message
from evals.world.world import World


class WorldNotifier:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("notifier.send", effect=True)
    def send(self, *, title: str, text: str, key: str) -> bool:
        if not self.world.notifier_channels:
            return False
        if all(message.key != key for message in self.world.state.messages):
            self.world.state.messages.append(Message(key=key, title=title, text=text))
            self.world.effect("notifier.send", model="", key=key, args={"title": title})
        return True
