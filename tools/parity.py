"""How far the export of a model may answer differently from the estimator that it was made of."""

from __future__ import annotations

from state.errors import ToolRejected

PARITY_TOLERANCE = 1e-4
"""Largest admissible difference of a probability; for numbers, in units of their spread."""


def refuse_difference(error: float, *, estimator: str) -> None:
    """Nothing where `error` is small enough to serve.

    Raises:
        ToolRejected: the exported model answers differently, or not with numbers; it must not be packaged.
    """
    if not error <= PARITY_TOLERANCE:
        raise ToolRejected(f"the ONNX export of {estimator} differs by {error:.3g}, more than {PARITY_TOLERANCE:g}")
