"""Raw columns as numbers, and the statuses of values that fall into no cell."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from state.encoding import Column

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

STATUSES = ("missing", "absent", "not_finite", "unparsable", "retyped", "out_of_bounds", "novel")
"""What is counted beside the cells. The first four are rows without a cell. On top of a row's cell: `retyped` (a number
that came as text), `out_of_bounds` (outside the *declared* bounds), `novel` (within the reference's range, but none of
its few distinct values, or with more decimals than its values have)."""
MISSING, ABSENT, NOT_FINITE, UNPARSABLE, RETYPED, OUT_OF_BOUNDS, NOVEL = range(7)
N_STATUSES = len(STATUSES)

NO_ROWS: Ints = np.empty(0, dtype=np.int64)


def items_of(values: Column) -> list[object]:
    if isinstance(values, list | tuple):
        return list(values)
    items: list[object] = np.asarray(values).tolist()
    return items


def is_missing(item: object) -> bool:
    return item is None or (isinstance(item, float | np.floating) and math.isnan(item))


def read_numbers(values: Column) -> tuple[Floats, Ints, Ints]:
    """Float32-rounded numbers, a status (-1 where the number counts), and the rows whose number came as text.

    Serving hands over float32 and training float64: rounding first puts a value into the same cell on both sides.
    """
    if not isinstance(values, list | tuple):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        numbers, retyped, unparsable = values, NO_ROWS, NO_ROWS
    else:
        items = items_of(values)
        odd = [row for row, item in enumerate(items) if type(item) not in _PLAIN]
        retyped_rows, unparsable_rows = [], []
        for row in odd:
            number = _parse(items[row])
            if number is None:
                unparsable_rows.append(row)
            elif isinstance(items[row], str) and not math.isnan(number):
                retyped_rows.append(row)
            items[row] = number
        numbers = np.array([_parse(item) if type(item) is int else item for item in items], dtype=np.float64)
        retyped, unparsable = np.array(retyped_rows, dtype=np.int64), np.array(unparsable_rows, dtype=np.int64)
    with np.errstate(over="ignore"):
        x = numbers.astype(np.float32).astype(np.float64)
    status = np.full(len(x), -1, dtype=np.int64)
    if not np.isfinite(x).all():
        status[np.isnan(x)] = MISSING
        status[np.isinf(x)] = NOT_FINITE
        x = np.where(status < 0, x, 0.0)
    status[unparsable] = UNPARSABLE
    return x, status, retyped


_PLAIN = frozenset({float, int, bool, type(None)})


def _parse(item: object) -> float | None:
    """The number that an unusual value names: NaN where it is empty, None where it is no number."""
    if isinstance(item, str) and not item.strip():
        return math.nan
    try:
        return float(item)  # type: ignore[arg-type]  # whatever a client sent; the error below is the answer
    except (TypeError, ValueError, OverflowError):
        return None
