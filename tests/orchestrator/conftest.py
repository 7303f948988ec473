from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.support import QUICK, SMALL, Stage, Truth, resumed, staged

MOMENTS: dict[str, Callable[[Stage], bool]] = {
    "canary": lambda stage: stage.weights() == {"1": 90, "2": 10},
    "ab_test": lambda stage: stage.weights() == {"1": 50, "2": 50},
    "bake": lambda stage: stage.weights() == {"1": 0, "2": 100},
    "after": lambda stage: any(incident.status == "closed" for incident in stage.incidents()),
}
"""What is first true at each moment of the quick model's remedy; `before` is the day before its canary."""
At = Callable[[str], Stage]


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of one remedy of a concept drift, at the moments that tests go on from."""
    folder = tmp_path_factory.mktemp("moments")
    (folder / "live").mkdir()
    found: dict[str, Path] = {}
    with staged(folder / "live", truth=SMALL, **QUICK) as stage:
        stage.drift("concept", 0.5)
        stage.start()
        for n_days in range(1, 31):
            if "canary" not in found:
                found["before"] = folder / f"before-{n_days}"
                stage.copy_to(found["before"])
            stage.days(1)
            for name in [name for name, is_it in MOMENTS.items() if name not in found and is_it(stage)]:
                found[name] = folder / name
                stage.copy_to(found[name])
            if "after" in found:
                return found
    raise AssertionError(f"the remedy did not come further than {', '.join(found)}: {stage.said[-1]}")


@pytest.fixture
def at(moments: dict[str, Path], tmp_path: Path) -> Iterator[At]:
    """`at("canary")`: a stage of one's own that goes on from that moment."""
    with ExitStack() as stack:

        def go(name: str) -> Stage:
            return stack.enter_context(resumed(moments[name], tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"))

        yield go


class Quick:
    """Makes quick models that have not begun; changes replace parts of the spec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *, seed: int = 0, truth: Truth = SMALL, **changes: Any) -> AbstractContextManager[Stage]:
        folder = self.folder / f"quick-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return staged(folder, seed=seed, truth=truth, **{**QUICK, **changes})


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    return Quick(tmp_path)
