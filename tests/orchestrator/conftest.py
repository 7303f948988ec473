from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.support import QUICK, SMALL, Stage, Truth, resumed, staged

MOMENTS = {"before": 5, "canary": 6, "ab_test": 8, "bake": 11, "after": 14}
"""Days served at each moment of the quick model's remedy."""
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
        for n_days in range(1, max(MOMENTS.values()) + 1):
            stage.days(1)
            for name in [name for name, day in MOMENTS.items() if day == n_days]:
                found[name] = folder / name
                stage.copy_to(found[name])
    return found


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
