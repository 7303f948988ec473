"""Counters of one server process, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Telemetry:
    """Plain integers: one event loop writes them, so that nothing locks on the request path."""

    def __init__(self, *, model: str, version: str, stage: str) -> None:
        self._info = {"model_name": model, "model_version": version, "model_stage": stage}
        self._version = version
        self._predictions: Counter[str | None] = Counter()
        self._flags: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS_SECONDS) + 1)
        self._seconds = 0.0

    def predicted(self, label: str | None, flags: list[str]) -> None:
        """Count one answered row; `label` is None for regression."""
        self._predictions[label] += 1
        if flags:
            self._flags.update(flags)

    def answered(self, seconds: float) -> None:
        """Count one answered request."""
        self._buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self._seconds += seconds

    def refused(self, reason: str) -> None:
        """Count one request that got no prediction."""
        self._refusals[reason] += 1

    def render(self, *, dropped_records: int) -> str:
        version = {"model_version": self._version}
        lines = ["# TYPE model_info gauge", _sample("model_info", self._info, 1)]
        lines.append("# TYPE model_predictions_total counter")
        for label, count in self._predictions.items():
            labels = version if label is None else {**version, "prediction_class": label}
            lines.append(_sample("model_predictions_total", labels, count))
        lines.append("# TYPE model_prediction_latency_seconds histogram")
        total = 0
        for bound, count in zip((*BUCKETS_SECONDS, "+Inf"), self._buckets, strict=True):
            total += count
            lines.append(_sample("model_prediction_latency_seconds_bucket", {**version, "le": str(bound)}, total))
        lines.append(_sample("model_prediction_latency_seconds_sum", version, self._seconds))
        lines.append(_sample("model_prediction_latency_seconds_count", version, total))
        lines.append("# TYPE model_input_flags_total counter")
        for flag, count in self._flags.items():
            kind, _, feature = flag.partition(":")
            lines.append(_sample("model_input_flags_total", {**version, "flag": kind, "feature": feature}, count))
        lines.append("# TYPE model_requests_refused_total counter")
        for reason, count in self._refusals.items():
            lines.append(_sample("model_requests_refused_total", {**version, "reason": reason}, count))
        lines.append("# TYPE model_records_dropped_total counter")
        lines.append(_sample("model_records_dropped_total", version, dropped_records))
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    text = ",".join(f'{key}="{_escaped(item)}"' for key, item in labels.items())
    return f"{name}{{{text}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
