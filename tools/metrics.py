"""What the proxy saw of each version: requests, failures and latencies."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from state.errors import ToolUnavailable
from tools.mesh.envoy_process import EnvoyProcess
from tools.mesh.translate import stat_name
from tools.ports import ServiceSample

MERGE_READS = 10
MERGE_SECONDS = 0.002
_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_BOUND = re.compile(r'le="([^"]+)"')
_PREFIX = "envoy_cluster_upstream_rq_"
_TOTAL = "envoy_cluster_upstream_rq_total"
_ANSWERED = "envoy_cluster_upstream_rq_completed"
_CLASSES = "envoy_cluster_upstream_rq_xx"
_LATENCY = "envoy_cluster_upstream_rq_time_bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceWindow:
    """One version's service between two samples."""

    n_requests: int
    error_ratio: float
    p50_ms: float | None
    """None where no request was answered by the version itself."""
    p99_ms: float | None


class EnvoyMetrics:
    """The Metrics port over the admin interface of the workspace's Envoy."""

    def __init__(self, workspace: Path) -> None:
        self._envoy = EnvoyProcess(workspace / "envoy")

    def sample(self, model: str, version: str) -> ServiceSample | None:
        """The version's counters now; None where no Envoy runs or it does not know the version.

        Raises:
            ToolUnavailable: Envoy runs and does not answer.
        """
        process = self._envoy.running()
        if process is None:
            return None
        cluster = re.escape(stat_name(model, version)).replace("\\", "%5C")
        pattern = f"^cluster[.]{cluster}[.]upstream_rq_(total|completed|active|5xx|time|rx_reset|tx_reset)$"
        source = f"envoy-{process.pid}-{process.start_ticks}"
        # Envoy merges the histograms of its threads after each answer, for the next one; its counters are current.
        for _ in range(MERGE_READS):
            text = self._envoy.admin("GET", f"/stats/prometheus?filter={pattern}")
            if _merged(text):
                break
            time.sleep(MERGE_SECONDS)
        return parse_sample(text, source=source)


def _merged(text: str) -> bool:
    """Whether every request that was sent and ended is in the histogram."""
    found = {match["name"].removeprefix(_PREFIX): float(match["value"]) for match in _SAMPLE.finditer(text)}
    ended = found.get("total", 0) - found.get("active", 0) - found.get("rx_reset", 0) - found.get("tx_reset", 0)
    return found.get("time_count", 0) >= ended


def parse_sample(text: str, *, source: str) -> ServiceSample | None:
    """The counters in Envoy's Prometheus text for one cluster; None where the cluster is not in it.

    Raises:
        ToolUnavailable: the text is not what Envoy writes.
    """
    counters: dict[str, int] = {}
    errors = 0
    buckets: dict[float, int] = {}
    try:
        for match in _SAMPLE.finditer(text):
            name, value = match["name"], int(float(match["value"]))
            if name == _LATENCY:
                bound = _BOUND.search(match["labels"])
                buckets[float(bound[1].replace("+Inf", "inf")) if bound else math.inf] = value
            elif name == _CLASSES:
                errors += value if 'envoy_response_code_class="5"' in match["labels"] else 0
            else:
                counters[name] = value
    except (ValueError, OverflowError) as exc:
        raise ToolUnavailable(f"Envoy's statistics cannot be read: {exc}") from exc
    if _TOTAL not in counters:
        return None
    # Not the total: a request that found no server is answered by the proxy's own 503, without ever being sent.
    return ServiceSample(
        n_requests=counters.get(_ANSWERED, 0), n_errors=errors, latency_buckets_ms=buckets, source=source
    )


def window(before: ServiceSample | None, after: ServiceSample | None) -> ServiceWindow | None:
    """What is known to have happened between two samples; None is `no_data`: a sample is missing, or nothing was asked.

    A proxy that started in between began at zero, and so did the counters of a version that left the route and came
    back: all that they hold came after `before`.
    """
    if before is None or after is None:
        return None
    if before.source != after.source or after.n_requests < before.n_requests:
        before = ServiceSample(n_requests=0, n_errors=0, latency_buckets_ms={}, source=after.source)
    n_requests = after.n_requests - before.n_requests
    n_errors = after.n_errors - before.n_errors
    buckets = {
        bound: count - before.latency_buckets_ms.get(bound, 0) for bound, count in after.latency_buckets_ms.items()
    }
    if n_requests <= 0 or n_errors < 0 or any(count < 0 for count in buckets.values()):
        return None
    return ServiceWindow(
        n_requests=n_requests,
        error_ratio=min(1.0, n_errors / n_requests),
        p50_ms=quantile(buckets, 0.5),
        p99_ms=quantile(buckets, 0.99),
    )


def quantile(buckets: Mapping[float, int], share: float) -> float | None:
    """The quantile of a cumulative histogram, linear within a bucket; None where it is empty.

    Beyond the last finite bound, that bound: it is the largest value that is certain.
    Source: Prometheus - histogram_quantile.
    """
    ordered = sorted(buckets.items())
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = share * ordered[-1][1]
    lower, below = 0.0, 0
    for bound, count in ordered:
        if count >= rank and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
