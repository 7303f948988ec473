from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from evals.world.platform import build
from evals.world.records import Condition
from tests.contract.support import MODEL, Side, served_world
from tools.ports import Metrics, ServiceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    side: Side[Metrics]
    send: Callable[[], int]
    """Send some requests; how many."""
    fail: Callable[[], None]
    """From now on version 1 gives no answer."""


@pytest.fixture(params=["world"])
def traffic(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traffic]:
    """One version that takes everything."""
    world, _ = served_world(tmp_path)

    def send() -> int:
        day = world.advance(1)
        return world.rows(MODEL, day).frame.height

    yield Traffic(
        side=Side(open=lambda: build(world).metrics),
        send=send,
        fail=lambda: world.degrade(MODEL, Condition(version="1", dead=True)),
    )


def sample(traffic: Traffic) -> ServiceSample:
    found = traffic.side.open().sample(MODEL, "1")
    assert found is not None
    return found


def test_a_version_that_serves_nothing_has_no_data(traffic: Traffic) -> None:
    assert traffic.side.open().sample(MODEL, "9") is None
    assert traffic.side.open().sample("nobody", "1") is None


def test_counters_rise_by_what_was_sent(traffic: Traffic) -> None:
    before = sample(traffic)
    n_sent = traffic.send()
    after = sample(traffic)

    assert after.source == before.source
    assert after.n_requests - before.n_requests == n_sent > 0
    assert after.n_errors == before.n_errors == 0


def test_latency_buckets_are_cumulative_and_end_at_infinity(traffic: Traffic) -> None:
    traffic.send()
    buckets = sample(traffic).latency_buckets_ms
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]

    assert bounds[-1] == math.inf
    assert len(bounds) >= 5
    assert counts == sorted(counts)
    assert counts[-1] == sample(traffic).n_requests


def test_requests_without_an_answer_are_errors(traffic: Traffic) -> None:
    traffic.send()
    before = sample(traffic)
    traffic.fail()
    n_sent = traffic.send()
    after = sample(traffic)

    assert after.n_errors - before.n_errors == after.n_requests - before.n_requests == n_sent
