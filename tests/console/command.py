"""The command line as tests call it, and what a refusal looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Steady = Callable[..., Answer]


def refused(answer: Answer, *parts: str) -> None:
    """Exit code 2, nothing on standard output, and last one message with its remedy and every one of `parts`."""
    assert answer.code == 2, answer
    assert answer.out == ""
    _, *said = ("\n" + answer.err).split("\nerror: ")
    assert len(said) == 1, answer.err
    message, _, remedy = said[0].partition("\n  do: ")
    assert message.strip()
    assert remedy.strip()
    for part in parts:
        assert part in said[0], answer.err
