"""The world's history, prediction records and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import polars as pl

from evals.world.faults import port_call
from evals.world.records import Recorded
from evals.world.truth import LATE_BY
from evals.world.world import World, empty_labels
from state.clock import utc
from state.errors import ToolRejected

MOMENT = timedelta(microseconds=1)
ROW_SCHEMA: dict[str, pl.DataType] = {
    "request_id": pl.Utf8(),
    "entity": pl.Utf8(),
    "event_time": pl.Datetime("us", "UTC"),
}


class WorldData:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("data.days")
    def days(self, model: str) -> Sequence[str]:
        known_model(self.world, model)
        return [d.isoformat() for d in self.world.history_days(model) if self.world.rows(model, d).frame.height]

    @port_call("data.history")
    def history(self, model: str, *, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        known_model(self.world, model)
        return history(self.world, model, start=start, end=end).drop("available_at").lazy()

    @port_call("data.digest")
    def digest(self, model: str) -> str:
        known_model(self.world, model)
        return self.world.history(model)[1]


class WorldOutcomes:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("outcomes.predictions")
    def predictions(self, model: str, *, start: datetime, end: datetime) -> pl.DataFrame:
        known_model(self.world, model)
        return predictions(self.world, model, start=start, end=end)

    @port_call("outcomes.revisions")
    def revisions(self, model: str) -> Mapping[str, int]:
        """The number of records, by event day."""
        known_model(self.world, model)
        counts: Counter[str] = Counter()
        is_late = any(drift.kind == "late_rows" for drift in self.world.model(model).truth.drifts)
        for served in self.world.model(model).days:
            record = self.world.served(model, served.day)
            if record is not None and record.predictions.height:
                days = record.predictions["event_time"].dt.strftime("%Y-%m-%d").to_list() if is_late else [served.day]
                counts.update(days if is_late else {served.day: record.predictions.height})
        return dict(counts)

    @port_call("outcomes.record", effect=True)
    def record(self, model: str, labels: pl.DataFrame, *, key: str) -> int:
        known_model(self.world, model)
        state = self.world.model(model)
        for recorded in state.recorded:
            if recorded.key == key:
                return 0
        rows = [
            (str(request_id), float(label), utc(at).isoformat())
            for request_id, label, at in labels.select("request_id", "label", "available_at").iter_rows()
        ]
        state.recorded.append(Recorded(key=key, rows=rows, n_new=len(rows)))
        self.world.effect("outcomes.record", model=model, key=key, args={"n_rows": len(rows)})
        return len(rows)

    @port_call("outcomes.labelled")
    def labelled(self, model: str, *, start: datetime, end: datetime, as_of: datetime) -> pl.DataFrame:
        known_model(self.world, model)
        return labelled(self.world, model, start=start, end=end, as_of=as_of)

    @port_call("outcomes.quarantine", effect=True)
    def quarantine(self, model: str, days: Sequence[str], *, reason: str, key: str) -> None:
        known_model(self.world, model)
        state = self.world.model(model)
        if key in state.quarantine_keys:
            return
        state.quarantine_keys.append(key)
        state.quarantined = sorted({*state.quarantined, *days})
        self.world.effect("outcomes.quarantine", model=model, key=key, args={"days": list(days), "reason": reason})

    @port_call("outcomes.quarantined")
    def quarantined(self, model: str) -> Sequence[str]:
        known_model(self.world, model)
        return list(self.world.model(model).quarantined)


def history(world: World, model: str, *, start: datetime | None, end: datetime | None) -> pl.DataFrame:
    """Rows that came with the model, with the label and when it became known."""
    return _between(world.history(model)[0], start, end)


def predictions(world: World, model: str, *, start: datetime, end: datetime) -> pl.DataFrame:
    frames = [
        record.predictions for day in _served_days(world, model, start, end) if (record := world.served(model, day))
    ]
    return _between(pl.concat(frames) if frames else _no_predictions(world, model), start, end)


def labelled(world: World, model: str, *, start: datetime, end: datetime, as_of: datetime) -> pl.DataFrame:
    """Prediction records with the label known by `as_of`; of two statements about a row the newer one counts."""
    days, own = _served_days(world, model, start, end), _recorded(world, model)
    if not days:
        return _no_predictions(world, model).join(empty_labels(), on="request_id", how="inner")
    if own is None:
        found = pl.concat([world.labelled(model, day) for day in days])
    else:
        frames = [record.predictions for day in days if (record := world.served(model, day))]
        known = [world.rows(model, date.fromisoformat(day)).labels for day in days]
        found = pl.concat(frames).join(pl.concat([*known, own]), on="request_id", how="inner", maintain_order="left")
    until = min(as_of, world.clock.now())
    found, newest_label = _between(found, start, end), found["available_at"].max()
    if isinstance(newest_label, datetime) and newest_label > until:
        found = found.filter(pl.col("available_at") <= until)
    if found["request_id"].n_unique() == found.height:
        return found
    newest = found.with_row_index("place").sort("available_at", maintain_order=True)
    newest = newest.unique("request_id", keep="last", maintain_order=True)
    first = found.with_row_index("first").unique("request_id", keep="first").select("request_id", "first")
    return newest.drop("place").join(first, on="request_id").sort("first").drop("first")


def _served_days(world: World, model: str, start: datetime, end: datetime) -> list[str]:
    """Days whose records may hold rows with an event time in [start, end)."""
    late = any(drift.kind == "late_rows" for drift in world.model(model).truth.drifts)
    first, last = start.date().isoformat(), (end + (LATE_BY if late else timedelta(0)) - MOMENT).date().isoformat()
    return world.served_between(model, first, last)


def _recorded(world: World, model: str) -> pl.DataFrame | None:
    """Labels that came through the port; None where none did."""
    own = [
        (request_id, label, datetime.fromisoformat(at).astimezone(UTC))
        for recorded in world.model(model).recorded
        for request_id, label, at in recorded.rows
    ]
    return pl.DataFrame(own, schema=empty_labels().schema, orient="row") if own else None


def _no_predictions(world: World, model: str) -> pl.DataFrame:
    features = world.rows(model, world.history_days(model)[0]).frame.clear()
    return features.with_columns(
        pl.lit("").alias("version"),
        pl.lit(value=False).alias("mirrored"),
        pl.lit(0.0).alias("score"),
        pl.lit([]).cast(pl.List(pl.Utf8)).alias("flags"),
    ).select(
        *ROW_SCHEMA,
        "version",
        "mirrored",
        "score",
        "flags",
        pl.exclude(*ROW_SCHEMA, "version", "mirrored", "score", "flags"),
    )


def _between(frame: pl.DataFrame, start: datetime | None, end: datetime | None) -> pl.DataFrame:
    low, high = frame["event_time"].min(), frame["event_time"].max()
    if not isinstance(low, datetime) or not isinstance(high, datetime):
        return frame
    if start is not None and low < start:
        frame = frame.filter(pl.col("event_time") >= start)
    return frame if end is None or high < end else frame.filter(pl.col("event_time") < end)


def known_model(world: World, model: str) -> None:
    """Raises `ToolRejected` where the world has no such model."""
    if model not in world.state.models:
        raise ToolRejected(f"{model}: no such model")
