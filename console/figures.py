"""Numbers as people read them."""

from __future__ import annotations


def figure(value: float, form: str) -> str:
    """`value` in a format of Python's, and nought without the minus that rounding leaves it."""
    text = f"{value:{form}}"
    return f"{0.0:{form}}" if text.startswith("-") and float(text) == 0 else text


def counted(n: int, what: str) -> str:
    """`1 refit`, `2 refits`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
