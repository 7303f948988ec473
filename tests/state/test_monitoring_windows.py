from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from state.spec import Monitoring


@pytest.mark.parametrize(
    ("given", "backtest", "drift_window", "cadence"),
    [
        pytest.param({}, 28, 28, 14, id="days"),
        pytest.param({"block": "P1D"}, 28, 28, 14, id="days-that-are-declared"),
        pytest.param({"block": "P7D"}, 70, 70, 14, id="weeks"),
        pytest.param({"block": timedelta(days=30)}, 300, 300, 30, id="months"),
        pytest.param({"block": "P7D", "backtest": "P56D", "cadence": "P28D"}, 56, 70, 28, id="what-is-declared-stands"),
    ],
)
def test_stretches_that_are_left_out_hold_enough_blocks_for_a_verdict(
    given: dict[str, Any], backtest: int, drift_window: int, cadence: int
) -> None:
    monitoring = Monitoring.model_validate(given)

    assert (monitoring.backtest.days, monitoring.drift_window.days) == (backtest, drift_window)
    assert monitoring.cadence.days == cadence
    assert Monitoring.model_validate_json(monitoring.model_dump_json()) == monitoring


def test_a_wrong_block_is_the_error_of_its_own_field() -> None:
    with pytest.raises(ValidationError) as refused:
        Monitoring.model_validate({"block": 7})

    assert [error["loc"] for error in refused.value.errors()] == [("block",)]
