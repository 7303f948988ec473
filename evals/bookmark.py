"""Bookmarks of a run: its world and its state before a morning, from which other runs go on.

Scenarios of one world are the same until the first entry of their timelines, and a run that is killed on some day is
the same as the one in peace until then. Each goes on from there in a folder of its own, and ends as if it had been
played from the beginning. LangGraph's checkpoints stay behind, as they may at any time.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from evals.scenario import Scenario
from evals.scene import Scene
from evals.world.world import World


def branch_day(scenario: Scenario) -> int:
    """The live day on whose morning a scenario may begin to differ from its healthy twin; 0 where it has no fault."""
    if all(entry.harmless for entry in scenario.timeline):
        return 0
    return min(entry.day for entry in scenario.timeline)


def place(folder: Path, day: int) -> Path:
    """Where a run leaves its bookmark of a live day in `folder`."""
    return folder / f"day-{day}"


def leave(scene: Scene, to: Path) -> None:
    """Copy the state of a quiet world and of its control plane into a new folder.

    Not where somebody has edited the policy files: what people were told names the folder that those are in.
    """
    shutil.copytree(scene.folder / "second", to / "second")
    shutil.copy(scene.folder / "key", to / "key")
    (to / "world").mkdir()
    shutil.copy(scene.world.save(), to / "world")
    (to / "draws.json").write_text(json.dumps(scene.draws.getstate()))
    # A copy of the file would miss what stands in the write-ahead log.
    source, copy = sqlite3.connect(scene.folder / "steady.db"), sqlite3.connect(to / "steady.db")
    with closing(source), closing(copy):
        source.backup(copy)


def take_up(bookmark: Path, folder: Path, draws: random.Random) -> World:
    """Copy a bookmark to the new folder of a run and set `draws`. Packages of versions stay where they were made."""
    shutil.copytree(bookmark, folder)
    kind, numbers, rest = json.loads((folder / "draws.json").read_text())
    draws.setstate((kind, tuple(numbers), rest))
    return World.load(folder / "world")
