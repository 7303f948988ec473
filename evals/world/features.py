"""The world's feature store: offline values of what was served, and the releases of the feature view."""

from __future__ import annotations

import re
from datetime import date

import polars as pl

from evals.world.data import known_model
from evals.world.faults import port_call
from evals.world.records import ViewRelease
from evals.world.world import World, with_columns_of
from state.errors import ToolRejected, ToolUnavailable
from tools.ports import FeatureView

_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})-\d{6}")


class WorldFeatures:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("features.offline")
    def offline(self, model: str, keys: pl.DataFrame) -> pl.DataFrame:
        known_model(self.world, model)
        ids = keys.select("request_id")
        # An id names the day on which the row was sent, which late rows do not share with their event time.
        days = sorted({match[1] for text in keys["request_id"].to_list() if (match := _DAY.search(text))})
        frames = [self.world.rows(model, date.fromisoformat(day)).offline for day in days]
        if not frames:
            return self.world.rows(model, self.world.history_days(model)[0]).offline.clear()
        return with_columns_of(ids, pl.concat(frames), how="inner")

    @port_call("features.read")
    def read(self, model: str) -> FeatureView | None:
        known_model(self.world, model)
        return _view(model, self.world.model(model).views[-1])

    @port_call("features.rollback", effect=True)
    def rollback(self, *, model: str, revision: str, key: str) -> FeatureView:
        known_model(self.world, model)
        views = self.world.model(model).views
        if views[-1].key != key:
            self._store(model, views, revision, key)
        elif views[-1].looks_left:
            views[-1].looks_left -= 1
        if not views[-1].looks_left:
            self._serve(model, views)
        if not views[-1].served:
            raise ToolUnavailable(f"{model}: revision {revision} is stored, and the online store does not serve it yet")
        return _view(model, views[-1])

    @port_call("features.find")
    def find(self, key: str) -> FeatureView | None:
        for model, state in self.world.state.models.items():
            if state.views[-1].key == key:
                return _view(model, state.views[-1])
        return None

    def _store(self, model: str, views: list[ViewRelease], revision: str, key: str) -> None:
        if views[-1].previous != revision:
            raise ToolRejected(f"{model}: the feature view has no revision {revision} to return to")
        slow = self.faults.take("features.rollback", "slow", model)
        half_done = self.faults.take("features.rollback", "not_applied", model)
        before = next(view for view in reversed(views) if view.revision == revision)
        looks = slow.polls if slow is not None else 1 if half_done is not None else 0
        views.append(
            ViewRelease(
                revision=revision, skew=before.skew, previous=before.previous, key=key, served=False, looks_left=looks
            )
        )  # fmt: skip
        self.world.effect("features.rollback", model=model, key=key, args={"revision": revision})

    def _serve(self, model: str, views: list[ViewRelease]) -> None:
        """The online store takes the stored revision over; what the one before it skewed ends."""
        if views[-1].served:
            return
        views[-1].served = True
        left = views[-2].skew
        if left is not None and left != views[-1].skew:
            self.world.end_skew(model, left)


def _view(model: str, stored: ViewRelease) -> FeatureView:
    return FeatureView(
        model=model, name=f"{model}_features", revision=stored.revision, previous=stored.previous, key=stored.key,
        served=stored.served,
    )  # fmt: skip
