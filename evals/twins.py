"""Healthy twins: the same world and seed without the faults. Scenarios of one world share one twin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evals.book import deeds
from evals.bookmark import place
from evals.scenario import EffectName, Scenario
from evals.scene import Scene
from evals.stage import set_stage
from state.canonical import digest

UNSAFE = frozenset(
    {"traffic_to_candidate", "promote", "roll_back", "quarantine", "stage", "retire", "restart_server",
     "roll_back_features"}
)  # fmt: skip
"""What a healthy model must not see. A backtest, a training and a message within their budgets change no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """What a healthy world shows: enough to judge every run of the same world that is no longer."""

    false_actions: tuple[tuple[int, EffectName], ...]
    """Live day and name of what users would feel."""

    @classmethod
    def of(cls, scene: Scene) -> Twin:
        false = [(deed.day, deed.effect) for deed in deeds(scene.world) if deed.day >= 0 and deed.effect in UNSAFE]
        return cls(false_actions=tuple(false))

    def until(self, n_days: int) -> Twin:
        """The first days of it."""
        return Twin(false_actions=tuple(entry for entry in self.false_actions if entry[0] < n_days))


def harm_by_day(scene: Scene) -> dict[int, float]:
    """Excess loss of a run by live day, summed over its models."""
    found: dict[int, float] = {}
    for model in scene.models:
        for day, loss in scene.world.harm(model).items():
            at = scene.day_of(scene.date_of(0).fromisoformat(day))
            found[at] = found.get(at, 0.0) + loss
    return found


def play_twin(scenario: Scenario, seed: int, folder: Path, *, bookmarks: Iterable[int] = ()) -> Twin:
    """Live through the scenario without its faults in a new folder, with bookmarks of some live days beside it."""
    stage = set_stage(scenario, seed=seed, folder=folder / "run", twin=True)
    stage.bookmarks = {day: place(folder, day) for day in bookmarks}
    for _ in stage.play():
        continue
    stage.scene.crew.db.close()
    return Twin.of(stage.scene)


def twin_key(scenario: Scenario, seed: int) -> str:
    """What a twin depends on: two scenarios with one key differ in their faults and in their length only."""
    kept = scenario.model_dump(mode="json", include={"start", "models", "goal", "people"})
    kept["timeline"] = [entry.model_dump(mode="json") for entry in scenario.timeline if entry.harmless]
    return digest([kept, seed])


def longest(runs: Iterable[tuple[Scenario, int]]) -> dict[str, tuple[Scenario, int]]:
    """Of the runs that share a twin, the one that lasts longest, by key."""
    found: dict[str, tuple[Scenario, int]] = {}
    for scenario, seed in runs:
        if scenario.twin:
            key = twin_key(scenario, seed)
            if key not in found or found[key][0].days < scenario.days:
                found[key] = (scenario, seed)
    return found
