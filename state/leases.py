"""Leases with a rising epoch: one worker owns a scope, and a stale one changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from state.database import insert
from state.errors import StaleRevision
from state.tables import leases

_EPOCH = sa.select(leases.c.epoch).where(leases.c.scope == sa.bindparam("scope")).with_for_update()


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
        # The row lock makes a takeover wait: checked here means true at commit.
        found = conn.execute(_EPOCH, {"scope": self.scope}).scalar_one_or_none()
        if found != self.epoch:
            raise StaleRevision(f"lease {self.scope!r} is in epoch {found}, not {self.epoch}: another worker has it")


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
    conn.execute(insert(conn, leases).values(scope=scope, owner=None, epoch=0, expires_ms=0).on_conflict_do_nothing())
    now = _now_ms(conn)
    mine = leases.c.owner == owner
    taken = (
        sa.update(leases)
        .where(leases.c.scope == scope, mine | leases.c.owner.is_(None) | (leases.c.expires_ms <= now))
        .values(
            owner=owner,
            epoch=sa.case((mine, leases.c.epoch), else_=leases.c.epoch + 1),
            expires_ms=now + int(ttl_seconds * 1000),
        )
        .returning(leases.c.epoch)
    )
    epoch = conn.execute(taken).scalar_one_or_none()
    return None if epoch is None else Lease(scope=scope, owner=owner, epoch=epoch)


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


def _now_ms(conn: sa.Connection) -> sa.ColumnElement[int]:
    """The database's clock as SQL, so that it is read after any wait for the row."""
    if conn.dialect.name == "sqlite":
        return sa.cast((sa.func.julianday("now") - 2440587.5) * 86_400_000, sa.BigInteger)
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1000, sa.BigInteger)
