"""Leases with a rising epoch: one worker owns a scope, and a stale one changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from state.database import insert
from state.errors import StaleRevision
from state.statements import Statement
from state.tables import leases

# The row lock makes a takeover wait: what a fence checks holds until the transaction ends.
_EPOCH = Statement(lambda _: sa.select(leases.c.epoch).where(leases.c.scope == sa.bindparam("scope")).with_for_update())
_ENTER = Statement(
    lambda dialect: (
        insert(dialect, leases)
        .values(scope=sa.bindparam("scope"), owner=None, epoch=0, expires_ms=0)
        .on_conflict_do_nothing()
    )
)


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write within `scope` for as long as its lease is in `epoch`."""

    scope: str
    epoch: int

    def check(self, conn: sa.Connection) -> None:
        """Return if the lease is still in this epoch, and keep it so until the transaction ends.

        Raises:
            StaleRevision: the lease has passed to a newer epoch; stop.
        """
        found = _EPOCH.one(conn, {"scope": self.scope})
        if found is None or found[0] != self.epoch:
            raise StaleRevision(
                f"lease {self.scope!r} is in epoch {found and found[0]}, not {self.epoch}: another worker has it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    scope: str
    owner: str
    epoch: int

    @property
    def fence(self) -> Fence:
        return Fence(self.scope, self.epoch)


def acquire(conn: sa.Connection, scope: str, owner: str, ttl_seconds: float) -> Lease | None:
    """Take or renew the lease of `scope` until `ttl_seconds` from now; None while another owner holds it.

    `owner` names one process, not one machine. Time is the database's, so clocks of workers may differ.
    The epoch rises with every change of owner and after a release; a renewal keeps it.
    """
    _ENTER.run(conn, {"scope": scope})
    taken = _TAKE.one(conn, {"wanted": scope, "taker": owner, "ttl_ms": int(ttl_seconds * 1000)})
    return None if taken is None else Lease(scope=scope, owner=owner, epoch=taken[0])


def holder(conn: sa.Connection, scope: str) -> Lease | None:
    """The lease of `scope` as it stands, expired or not; None where nobody holds it."""
    found = conn.execute(sa.select(leases.c.owner, leases.c.epoch).where(leases.c.scope == scope)).one_or_none()
    return None if found is None or found.owner is None else Lease(scope=scope, owner=found.owner, epoch=found.epoch)


def held(conn: sa.Connection) -> list[Lease]:
    """Every lease that somebody holds, expired or not."""
    found = conn.execute(sa.select(leases.c.scope, leases.c.owner, leases.c.epoch).where(leases.c.owner.is_not(None)))
    return [Lease(scope=row.scope, owner=row.owner, epoch=row.epoch) for row in found]


def release(conn: sa.Connection, lease: Lease) -> bool:
    """Give the lease back; False if it had already passed on. The epoch rises, so late writes are refused."""
    given = sa.update(leases).where(
        leases.c.scope == lease.scope, leases.c.owner == lease.owner, leases.c.epoch == lease.epoch
    )
    return conn.execute(given.values(owner=None, epoch=leases.c.epoch + 1, expires_ms=0)).rowcount == 1


def _now_ms(dialect: sa.Dialect) -> sa.ColumnElement[int]:
    """The database's clock as SQL, so that it is read after any wait for the row."""
    if dialect.name == "sqlite":
        return sa.cast((sa.func.julianday("now") - 2440587.5) * 86_400_000, sa.BigInteger)
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1000, sa.BigInteger)


def _take(dialect: sa.Dialect) -> sa.ClauseElement:
    """The lease to `taker` for `ttl_ms` from now, where it is free; returns its epoch."""
    now, mine = _now_ms(dialect), leases.c.owner == sa.bindparam("taker")
    free = mine | leases.c.owner.is_(None) | (leases.c.expires_ms <= now)
    return (
        sa.update(leases)
        .where(leases.c.scope == sa.bindparam("wanted"), free)
        .values(
            owner=sa.bindparam("taker"),
            epoch=sa.case((mine, leases.c.epoch), else_=leases.c.epoch + 1),
            expires_ms=now + sa.bindparam("ttl_ms", type_=sa.BigInteger()),
        )
        .returning(leases.c.epoch)
    )


_TAKE = Statement(_take)
