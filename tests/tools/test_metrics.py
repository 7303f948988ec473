"""Windows between two samples of a version: counts, quantiles, and when there is no verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from state.errors import ToolUnavailable
from tools.metrics import parse_sample, quantile, window
from tools.ports import ServiceSample

TEXT = """# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="fraud__v1"} 50
envoy_cluster_upstream_rq_completed{envoy_cluster_name="fraud__v1"} 60
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="fraud__v1"} 50
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="fraud__v1"} 10
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="fraud__v1",le="1"} 20
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="fraud__v1",le="2.5"} 49
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="fraud__v1",le="+Inf"} 50
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="fraud__v1"} 95.4
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="fraud__v1"} 50
"""
ZERO = ServiceSample(n_requests=0, n_errors=0, latency_buckets_ms={10.0: 0, 20.0: 0, math.inf: 0}, source="a")
HUNDRED = ServiceSample(n_requests=100, n_errors=3, latency_buckets_ms={10.0: 50, 20.0: 100, math.inf: 100}, source="a")


def test_a_sample_is_read_from_envoys_text() -> None:
    sample = parse_sample(TEXT, source="s")

    assert sample == ServiceSample(
        n_requests=60, n_errors=10, latency_buckets_ms={1.0: 20, 2.5: 49, math.inf: 50}, source="s"
    )


def test_a_cluster_that_is_not_there_has_no_sample_and_one_without_requests_has_zeros() -> None:
    assert parse_sample("", source="s") is None
    silent = parse_sample('envoy_cluster_upstream_rq_total{envoy_cluster_name="c"} 0\n', source="s")
    assert silent == ServiceSample(n_requests=0, n_errors=0, latency_buckets_ms={}, source="s")


@pytest.mark.parametrize("value", ["abc", "nan", "inf"])
def test_text_that_is_not_envoys_is_no_sample(value: str) -> None:
    with pytest.raises(ToolUnavailable, match="cannot be read"):
        parse_sample(f'envoy_cluster_upstream_rq_total{{a="b"}} {value}\n', source="s")


def test_a_window_is_the_difference_of_two_samples() -> None:
    seen = window(ZERO, HUNDRED)

    assert seen is not None
    assert (seen.n_requests, seen.error_ratio, seen.p50_ms) == (100, 0.03, 10.0)
    assert seen.p99_ms == pytest.approx(19.8)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, HUNDRED, id="no-first-sample"),
        pytest.param(ZERO, None, id="no-second-sample"),
        pytest.param(HUNDRED, HUNDRED, id="nothing-asked"),
        pytest.param(HUNDRED, ZERO, id="counters-restarted"),
        pytest.param(HUNDRED, replace(ZERO, source="b"), id="another-process-that-was-asked-nothing"),
        pytest.param(replace(ZERO, n_errors=5), HUNDRED, id="errors-went-back"),
        pytest.param(replace(ZERO, latency_buckets_ms={10.0: 60}), HUNDRED, id="latencies-went-back"),
    ],
)
def test_no_data_is_none_and_never_zero(before: ServiceSample | None, after: ServiceSample | None) -> None:
    assert window(before, after) is None


def test_counters_of_another_process_began_at_zero_after_the_first_sample() -> None:
    before = replace(HUNDRED, n_requests=70, latency_buckets_ms={10.0: 70, math.inf: 70})

    assert window(before, replace(HUNDRED, source="b")) == window(ZERO, HUNDRED)


def test_a_count_that_fell_began_anew_after_the_first_sample() -> None:
    before = ServiceSample(n_requests=900, n_errors=90, latency_buckets_ms={10.0: 1, math.inf: 900}, source="a")

    assert window(before, HUNDRED) == window(ZERO, HUNDRED)


def test_requests_that_the_version_did_not_answer_have_no_latency() -> None:
    failed = replace(ZERO, n_requests=10, n_errors=10)
    seen = window(ZERO, failed)

    assert seen is not None and (seen.error_ratio, seen.p50_ms, seen.p99_ms) == (1.0, None, None)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        pytest.param({10.0: 0, 20.0: 10, math.inf: 10}, 0.5, 15.0, id="within-a-bucket"),
        pytest.param({10.0: 10, 20.0: 10, math.inf: 10}, 1.0, 10.0, id="end-of-a-bucket"),
        pytest.param({10.0: 1, 20.0: 1, math.inf: 10}, 0.99, 20.0, id="beyond-the-last-bound"),
        pytest.param({}, 0.5, None, id="no-buckets"),
    ],
)
def test_quantiles(buckets: dict[float, int], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == expected
