"""The action ledger as crash mode watches it: which states were committed, and a kill right after one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from evals.world.faults import Killed
from orchestrator.crew import Crew
from state import log
from state.decisions import ActionChanged, ActionDecided
from state.store import Connection, Database


@dataclass(slots=True, kw_only=True)
class LedgerWatch:
    """States of actions as they are committed, from a place in the log on.

    `acting` is left out: a kill after it is the kill before the effect.
    """

    since: int
    """First record of the decision log that was not looked at."""
    nth: int = 0
    """The state, counted from 1, after whose commit the control plane is killed; 0: none."""
    heard: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, db: Database, *, nth: int = 0) -> LedgerWatch:
        """Watch what comes after what is in the ledger now."""
        with db.snapshot() as conn:
            return cls(since=log.size(conn), nth=nth)

    def watched(self, crew: Crew) -> Crew:
        """The same control plane, its commits watched."""
        return replace(crew, db=_Watched(crew.db, self))

    def committed(self, db: Database) -> None:
        """Take in what the newest commit changed."""
        with db.snapshot() as conn:
            entries = log.read(conn, since_index=self.since)
        self.since += len(entries)
        changed: dict[str, str] = {}
        """Key of an action -> its newest state: a commit that takes one through two states is one moment."""
        for entry in entries:
            match entry.decision:
                case ActionDecided(verdict="allow", action_key=str(key), action=kind, model=model):
                    changed[key] = f"{kind} of {model} intended"
                case ActionChanged(action_key=key, action=kind, model=model, state=state) if state != "acting":
                    changed[key] = f"{kind} of {model} {state}"
                case _:
                    pass
        for said in changed.values():
            self.heard.append(said)
            if len(self.heard) == self.nth:
                raise Killed(f"once {said} was committed")


class _Watched(Database):
    """A database that somebody else opened and closes, each of its commits told."""

    def __init__(self, db: Database, watch: LedgerWatch) -> None:
        self._db, self._watch = db, watch

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        with self._db.snapshot() as conn:
            yield conn

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self._db.transaction() as conn:
            yield conn
        self._watch.committed(self._db)
