"""What the control plane did to a world, by the names that scenarios use, read from the world's own ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from evals.scenario import EffectName
from evals.world.records import Effect
from evals.world.release import SETUP
from evals.world.world import World

FIRST_DAY = -1
"""Effects before the first live day: the first champion is made there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    effect: EffectName
    model: str
    version: str | None
    day: int
    """Live day on whose evening it happened; -1 before the first one."""
    index: int
    """Place in the world's ledger."""
    days: tuple[str, ...] = ()
    """quarantine: the ISO days."""


def deeds(world: World) -> list[Deed]:
    """Every effect of the control plane that has a name, in order."""
    reader = _Reader(world)
    return [deed for effect in world.effects for deed in reader.read(effect)]


def repeated(world: World) -> list[str]:
    """Effects that happened twice under one key."""
    counted = Counter((effect.method, effect.key) for effect in world.effects)
    return [f"{method} under {key[:12]}" for (method, key), n in counted.items() if n > 1]


class _Reader:
    def __init__(self, world: World) -> None:
        self._start = date.fromisoformat(world.state.start)
        self._champion: dict[str, str] = {}
        self._former: dict[str, set[str]] = {}
        self._weights: dict[str, dict[str, int]] = {}
        self._started: set[tuple[str, str]] = set()

    def read(self, effect: Effect) -> Sequence[Deed]:
        names = self._names(effect)
        if effect.key.startswith(SETUP):
            return []
        # The clock stands at the end of the day that was served.
        day = max((datetime.fromisoformat(effect.at).date() - self._start).days - 1, FIRST_DAY)
        days = tuple(str(d) for d in effect.args.get("days", ()))  # type: ignore[union-attr]
        return [
            Deed(effect=name, model=effect.model, version=version, day=day, index=effect.index, days=days)
            for name, version in names
        ]

    def _names(self, effect: Effect) -> list[tuple[EffectName, str | None]]:
        version = str(effect.args["version"]) if "version" in effect.args else None
        match effect.method:
            case "pipelines.submit":
                return [("train" if effect.args["pipeline"] == "train" else "backtest", None)]
            case "registry.register":
                return [("register", version)]
            case "servers.start":
                again = (effect.model, str(version)) in self._started
                self._started.add((effect.model, str(version)))
                return [("restart_server", version)] if again else []
            case "registry.alias.champion":
                return self._crown(effect.model, str(version))
            case "mesh.stage" | "mesh.set_weights" | "mesh.retire":
                return self._route(effect)
            case "outcomes.quarantine":
                return [("quarantine", None)]
            case "features.rollback":
                return [("roll_back_features", None)]
            case "notifier.send":
                return [("tell", None)]
        return []

    def _crown(self, model: str, version: str) -> list[tuple[EffectName, str | None]]:
        before = self._champion.get(model)
        back = version in self._former.get(model, set())
        self._champion[model] = version
        if before is not None and before != version:
            self._former.setdefault(model, set()).add(before)
        return [] if before == version else [("roll_back" if back else "promote", version if not back else before)]

    def _route(self, effect: Effect) -> list[tuple[EffectName, str | None]]:
        model = effect.model
        found: list[tuple[EffectName, str | None]] = []
        now = {str(v): int(w) for v, w in effect.args["weights"].items()}  # type: ignore[union-attr,arg-type]
        before, self._weights[model] = self._weights.get(model, {}), now
        champion = self._champion.get(model)
        if effect.method == "mesh.stage":
            found += [("stage", version) for version in now if version not in before]
        if effect.method == "mesh.retire":
            found += [("retire", version) for version in before if version not in now]
        former = self._former.get(model, set())
        for version, weight in now.items():
            if champion is None or version == champion or version in former:
                continue
            if weight > before.get(version, 0):
                found.append(("traffic_to_candidate", version))
            elif weight == 0 and before.get(version, 0) > 0:
                found.append(("roll_back", version))
        return found
