"""A replay by the real command from end to end, and what holds after every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e import datasets, running
from tests.e2e.datasets import Story, day


@dataclass(frozen=True)
class Ended:
    """A replay that has ended, and what the commands say about it."""

    home: Path
    summary: dict[str, Any]
    said: str
    status: dict[str, Any]
    incidents: list[dict[str, Any]]
    audit: dict[str, Any]


@contextmanager
def replayed(folder: Path, story: Story, until: int) -> Iterator[Ended]:
    """The story from its replay day to `until`; what is left of it is ended with the block."""
    home, spec = folder / "ws", datasets.write(folder, story)
    try:
        done = running.steady(
            "up", spec, "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", "--until", f"{day(until):%Y-%m-%d}",
            "--json", home=home,
        )  # fmt: skip
        assert done.code == 0, done.err
        yield Ended(
            home=home, summary=done.json, said=done.err, status=running.steady("status", "--json", home=home).json,
            incidents=running.steady("incidents", "--json", home=home).json["incidents"],
            audit=running.steady("audit", "verify", "--json", home=home).json,
        )  # fmt: skip
    finally:
        running.end(home)


def sound(ended: Ended, *, asks: bool = False) -> dict[str, Any]:
    """What holds after every replay, whatever its story; the model's status. `asks`: it ends with a person's turn."""
    assert ended.audit["ok"], ended.audit["problems"]
    assert ended.audit["problems"] == []
    assert ended.audit["n_proven"] == ended.audit["n_records"] == ended.summary["log"]["n_records"]
    assert ended.audit["n_actions"] == len(running.actions(ended.home))
    assert {state for _, state, _ in running.actions(ended.home)} == {"verified"}
    [model] = ended.status["models"]
    assert bool(model["runs"]) is asks
    assert bool(ended.status["approvals"]) is asks
    # Route, registry and ledger name one champion.
    champion = model["champion"]
    assert model["weights"] == {champion: 100}
    assert running.alias(ended.home, "champion") == champion
    [serving] = [v["version"] for v in ended.summary["versions"] if v["served_until"] is None]
    assert serving == champion
    # Every row of the window was answered by somebody, and nobody was answered twice.
    traffic = ended.summary["traffic"]
    n_days = round((day_of(ended.summary["end"]) - day_of(ended.summary["start"])) / datasets.DAY)
    assert traffic["n_answered"] == n_days * datasets.PER_DAY == sum(traffic["n_by_version"].values())
    assert traffic["n_errors"] == 0
    assert running.wait_until_gone(ended.home) == {}
    return dict(model)


def day_of(text: str) -> datetime:
    return datetime.fromisoformat(text)
