"""One encoder: the same bits for a batch and for its rows one by one, and no input that raises."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.contract import Contract, Encoder, FeatureContract, fit_encoder
from state.encoding import Boolean, FeatureType, HashedBag, Number, OneHot, Values
from state.errors import TerminalError


@dataclass(frozen=True)
class Declared:
    name: str
    type: FeatureType
    low: float | None = None
    high: float | None = None


FEATURES = (
    FeatureContract(name="amount", type="numeric", encoding=Number(), low=0.0, high=100.0, low_declared=True),
    FeatureContract(name="online", type="boolean", encoding=Boolean()),
    FeatureContract(name="shop", type="categorical", encoding=OneHot(("food", "fuel"))),
    FeatureContract(
        name="city",
        type="categorical",
        encoding=Values({"rome": 0.1, "oslo": 1 / 3, "7": 0.9}, unknown=0.25, missing=0.3),
    ),
    FeatureContract(name="note", type="text", encoding=HashedBag(16)),
)
CONTRACT = Contract(model="fraud", task="binary", classes=("no", "yes"), features=FEATURES)

JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["rome", "oslo", "food", "fuel", "7", "12.5", " 3 ", "nan", "1e999", "true", "No", 10**400, 1e300]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
ROWS = st.lists(st.fixed_dictionaries({feature.name: JSON_VALUES for feature in FEATURES}), min_size=1, max_size=6)


@given(rows=ROWS)
@settings(max_examples=300, deadline=None)
def test_a_batch_and_its_rows_one_by_one_give_the_same_bits(rows: list[dict[str, Any]]) -> None:
    encoder = Encoder(FEATURES)
    batch = encoder.encode({feature.name: [row[feature.name] for row in rows] for feature in FEATURES})
    single = np.stack([encoder.encode_row(row).vector for row in rows])

    assert batch.dtype == single.dtype == np.float32
    assert np.isinf(single).sum() == 0
    assert batch.tobytes() == single.tobytes()


@given(
    numbers=st.lists(st.one_of(st.floats(), st.none()), min_size=1, max_size=20),
    flags=st.lists(st.one_of(st.booleans(), st.none()), min_size=20, max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_a_polars_column_encodes_like_the_json_values_it_came_from(
    numbers: list[float | None], flags: list[bool | None]
) -> None:
    encoder = Encoder(FEATURES[:2])
    flags = flags[: len(numbers)]
    frame = pl.DataFrame({"amount": pl.Series(numbers, dtype=pl.Float64), "online": pl.Series(flags, dtype=pl.Boolean)})
    rows = [encoder.encode_row({"amount": a, "online": b}).vector for a, b in zip(numbers, flags, strict=True)]

    assert encoder.encode(frame.to_dict()).tobytes() == np.stack(rows).tobytes()


@pytest.mark.parametrize(
    ("integer"), [2**53 + 1, 2**63 + 12_345, 16_777_217, -(2**62) - 1], ids=lambda value: str(value)
)
def test_large_integers_round_alike_from_json_and_from_an_integer_column(integer: int) -> None:
    encoder = Encoder((FeatureContract(name="n", type="numeric", encoding=Number()),))
    column = np.array([integer], dtype=np.uint64 if integer > 0 else np.int64)

    assert encoder.encode({"n": column})[0].tobytes() == encoder.encode_row({"n": integer}).vector.tobytes()


GOOD = {"amount": 5.0, "online": True, "shop": "food", "city": "oslo", "note": "hi"}


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        pytest.param({}, [], id="nothing-odd"),
        pytest.param({"amount": 101}, ["out_of_range:amount"], id="above"),
        pytest.param({"amount": -0.5}, ["out_of_range:amount"], id="below"),
        pytest.param({"amount": 100}, [], id="exactly-at-the-bound"),
        pytest.param({"amount": "12.5"}, ["text_number:amount"], id="number-as-text"),
        pytest.param({"amount": "-3"}, ["text_number:amount", "out_of_range:amount"], id="low-number-as-text"),
        pytest.param({"amount": "abc"}, ["unparsable:amount"], id="not-a-number"),
        pytest.param({"amount": {"a": 1}}, ["unparsable:amount"], id="object"),
        pytest.param({"amount": math.inf}, ["missing:amount"], id="infinite"),
        pytest.param({"amount": math.nan}, ["missing:amount"], id="nan"),
        pytest.param({"amount": None}, ["missing:amount"], id="null"),
        pytest.param({"amount": ""}, ["missing:amount"], id="empty-text"),
        pytest.param({"amount": 10**400}, ["out_of_range:amount"], id="beyond-double"),
        pytest.param({"amount": 1e300}, ["out_of_range:amount"], id="beyond-float32"),
        pytest.param({"online": 2}, ["unparsable:online"], id="not-a-truth-value"),
        pytest.param({"online": "yes"}, [], id="truth-value-as-text"),
        pytest.param({"shop": "toys"}, ["unknown_level:shop"], id="unknown-level"),
        pytest.param({"city": 7}, [], id="level-as-number"),
        pytest.param({"city": 7.0}, [], id="level-as-whole-float"),
        pytest.param({"city": [1]}, ["unparsable:city"], id="level-as-list"),
        pytest.param({"city": None, "note": None}, ["missing:city", "missing:note"], id="two-nulls"),
    ],
)
def test_what_is_odd_about_a_row_is_flagged(change: dict[str, Any], flags: list[str]) -> None:
    assert Encoder(FEATURES).encode_row({**GOOD, **change}).flags == flags


def test_absent_features_are_missing() -> None:
    row = Encoder(FEATURES).encode_row({})

    assert row.flags == [f"missing:{feature.name}" for feature in FEATURES]
    assert np.isnan(row.vector[:2]).all()
    assert row.vector[4] == np.float32(0.3)


def test_columns_follow_the_features() -> None:
    encoder = Encoder(FEATURES)
    vector = encoder.encode_row({**GOOD, "city": "lima"}).vector

    assert encoder.width == 1 + 1 + 2 + 1 + 16
    assert encoder.column_features[:5] == ("amount", "online", "shop", "shop", "city")
    assert vector[:5].tolist() == [5.0, 1.0, 1.0, 0.0, 0.25]
    assert np.linalg.norm(vector[5:]) == pytest.approx(1.0)


def test_words_hash_alike_in_every_process() -> None:
    encoder = Encoder((FeatureContract(name="note", type="text", encoding=HashedBag(8)),))

    assert encoder.encode_row({"note": "Card declined, card lost"}).vector.tolist() == pytest.approx(
        [0.0, 0.0, 0.0, 0.707107, 0.0, 0.707107, 0.0, 0.0]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"amount": -1}, "amount is -1: the smallest admissible value is 0", id="declared-bound"),
        pytest.param({"amount": 1e6}, None, id="observed-bound-only-flags"),
        pytest.param({"amount": None}, None, id="missing"),
        pytest.param({"amount": "-2"}, "amount is -2: the smallest admissible value is 0", id="as-text"),
    ],
)
def test_only_declared_bounds_refuse(row: dict[str, Any], message: str | None) -> None:
    assert Encoder(FEATURES).refusal(row) == message


def test_contract_survives_its_json() -> None:
    data = CONTRACT.to_json()

    assert Contract.from_json(data) == CONTRACT
    assert Contract.from_json(data).to_json() == data
    assert json.loads(data)["features"][3]["encoding"]["kind"] == "values"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"format": 2}, r"contract\.json: .*2.*format", id="newer-format"),
        pytest.param({"task": "ranking"}, r"contract\.json: .*ranking.*task", id="unknown-task"),
        pytest.param({"features": []}, "features none", id="no-features"),
        pytest.param({"classes": ["a"]}, "1 classes do not fit task 'binary'", id="one-class"),
    ],
)
def test_a_broken_contract_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    broken = {**json.loads(CONTRACT.to_json()), **change}

    with pytest.raises(TerminalError, match=message):
        Contract.from_json(json.dumps(broken).encode())


def test_a_contract_with_a_number_that_json_lacks_is_not_written() -> None:
    feature = replace(FEATURES[3], encoding=Values({"a": math.nan}, unknown=0.0, missing=0.0))

    with pytest.raises(TerminalError):
        replace(CONTRACT, features=(feature,)).to_json()


def _city_frame() -> tuple[list[str | None], np.ndarray[Any, np.dtype[np.float64]]]:
    cities: list[str | None] = [f"c{i:02d}" for i in range(20) for _ in range(10)]
    label = np.array([1.0 if city == "c00" else 0.0 for city in cities])
    return [*cities, *[None] * 10], np.append(label, np.ones(10))


def test_many_levels_become_their_shrunk_target_mean() -> None:
    cities, label = _city_frame()
    (fitted,) = fit_encoder({"city": cities}, label, [Declared("city", "categorical")], task="binary", smoothing=50.0)

    assert isinstance(fitted.encoding, Values)
    prior = 20 / 210
    assert fitted.encoding.unknown == pytest.approx(prior)
    assert fitted.encoding.map["c00"] == pytest.approx((10 + 50 * prior) / 60)
    assert fitted.encoding.map["c01"] == pytest.approx(50 * prior / 60)
    assert fitted.encoding.missing == pytest.approx((10 + 50 * prior) / 60)


def test_rows_without_a_label_do_not_move_the_target_mean() -> None:
    cities, label = _city_frame()
    declared = [Declared("city", "categorical")]
    fitted = fit_encoder({"city": cities}, label, declared, task="binary")
    more = fit_encoder(
        {"city": [*cities, *["c05"] * 500]}, np.append(label, np.full(500, np.nan)), declared, task="binary"
    )

    assert isinstance(fitted[0].encoding, Values) and isinstance(more[0].encoding, Values)
    assert more[0].encoding.map["c05"] == pytest.approx(fitted[0].encoding.map["c05"])


def test_several_classes_rank_levels_by_frequency() -> None:
    cities = [city for rank, city in enumerate("abcdefghijklmnop") for _ in range(20 - rank)]
    label = np.zeros(len(cities))
    (fitted,) = fit_encoder({"city": cities}, label, [Declared("city", "categorical")], task="multiclass")

    assert isinstance(fitted.encoding, Values)
    assert fitted.encoding.map["a"] == 0.0 and fitted.encoding.map["p"] == 15.0
    assert fitted.encoding.unknown == 16.0


@pytest.mark.parametrize(("n_levels", "kind"), [(12, OneHot), (13, Values)])
def test_up_to_twelve_levels_are_one_hot(n_levels: int, kind: type[msgspec.Struct]) -> None:
    cities = [f"c{i}" for i in range(n_levels)]
    (fitted,) = fit_encoder({"city": cities}, np.zeros(n_levels), [Declared("city", "categorical")], task="regression")

    assert isinstance(fitted.encoding, kind)


def test_rare_levels_count_as_unknown() -> None:
    (fitted,) = fit_encoder(
        {"city": ["a"] * 5 + ["b"]}, np.zeros(6), [Declared("city", "categorical")], task="binary", min_count=2
    )

    assert fitted.encoding == OneHot(("a",))


def test_bounds_are_the_declared_ones_or_those_trained_on() -> None:
    column = np.array([0.1, 7.0, np.nan, np.inf])
    declared, observed = fit_encoder(
        {"a": column, "b": column},
        np.zeros(4),
        [Declared("a", "numeric", 0.0), Declared("b", "numeric")],
        task="binary",
    )

    assert (declared.low, declared.low_declared, declared.high_declared) == (0.0, True, False)
    assert observed.low is not None and observed.high is not None
    assert observed.low < np.float32(0.1) < 0.1 + 1e-6 and 7.0 < observed.high < 7.000001
    encoder = Encoder((observed,))
    assert encoder.encode_row({"b": float(np.float32(0.1))}).flags == []


def test_a_feature_without_a_column_is_named() -> None:
    with pytest.raises(TerminalError, match="no column for feature b"):
        fit_encoder({"a": [1.0]}, np.zeros(1), [Declared("a", "numeric"), Declared("b", "numeric")], task="binary")
    with pytest.raises(TerminalError, match="no column for feature note"):
        Encoder(FEATURES).encode({name: [GOOD[name]] for name in ("amount", "online", "shop", "city")})
    with pytest.raises(TerminalError, match="differ in length"):
        Encoder(FEATURES[:2]).encode({"amount": [1.0, 2.0], "online": [True]})


def test_a_hundred_thousand_rows_encode_in_half_a_second_of_processor_time() -> None:
    rng = np.random.default_rng(7)
    n_rows = 100_000
    columns: dict[str, Any] = {f"n{i}": rng.normal(size=n_rows) for i in range(10)}
    columns |= {f"c{i}": rng.integers(0, 10 ** (i + 1), n_rows).astype(str).astype(object) for i in range(4)}
    columns["b"] = pl.Series(rng.random(n_rows) < 0.5)
    declared = [
        Declared(name, "numeric" if name[0] == "n" else "categorical" if name[0] == "c" else "boolean")
        for name in columns
    ]
    encoder = Encoder(fit_encoder(columns, rng.random(n_rows), declared, task="regression"))

    began = time.process_time()
    matrix = encoder.encode(columns)

    assert matrix.shape == (n_rows, encoder.width)
    assert time.process_time() - began < 0.5
