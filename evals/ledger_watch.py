"""The action ledger as crash mode watches it: which states were committed, and a kill right after one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from evals.world.faults import Killed
from orchestrator.crew import Crew
from state.database import Database
from state.tables import actions

_NEWEST = sa.select(sa.func.max(actions.c.log_index))
_SINCE = (
    sa.select(actions.c.kind, actions.c.model, actions.c.state, actions.c.log_index)
    .where(actions.c.log_index > sa.bindparam("seen"))
    .order_by(actions.c.log_index)
)


@dataclass(slots=True, kw_only=True)
class LedgerWatch:
    """States of actions as they are committed, from a place in the log on.

    `acting` is left out: a kill after it is the kill before the effect.
    """

    seen: int
    nth: int = 0
    """The state, counted from 1, after whose commit the control plane is killed; 0: none."""
    heard: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, db: Database, *, nth: int = 0) -> LedgerWatch:
        """Watch what comes after what is in the ledger now."""
        with db.snapshot() as conn:
            return cls(seen=conn.execute(_NEWEST).scalar() or 0, nth=nth)

    def watched(self, crew: Crew) -> Crew:
        """The same control plane, its commits watched."""
        return replace(crew, db=_Watched(crew.db, self))

    def committed(self, db: Database) -> None:
        """Take in what the newest commit changed."""
        with db.snapshot() as conn:
            changed = conn.execute(_SINCE, {"seen": self.seen}).all()
        for kind, model, state, log_index in changed:
            self.seen = log_index
            if state == "acting":
                continue
            self.heard.append(f"{kind} of {model} {state}")
            if len(self.heard) == self.nth:
                raise Killed(f"once {self.heard[-1]} was committed")


class _Watched(Database):
    """A database that somebody else opened and closes, each of its commits told."""

    def __init__(self, db: Database, watch: LedgerWatch) -> None:
        self._db, self._watch = db, watch

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        with self._db.snapshot() as conn:
            yield conn

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        with self._db.transaction() as conn:
            yield conn
        self._watch.committed(self._db)
