"""Facts: typed statements about the world with their source and time."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

FactValue: TypeAlias = bool | int | float | str


class Fact(BaseModel):
    """One statement, for instance `gates_passed = true` from `evaluation of run X`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: FactValue
    source: str
    at: datetime


def values(facts: list[Fact]) -> dict[str, FactValue]:
    """The newest value of each fact by name."""
    newest: dict[str, Fact] = {}
    for fact in facts:
        if fact.name not in newest or fact.at >= newest[fact.name].at:
            newest[fact.name] = fact
    return {name: fact.value for name, fact in newest.items()}
