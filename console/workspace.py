"""The workspace: one directory with the state, the keys and the data, and the first start that makes it."""

from __future__ import annotations

import getpass
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from console.settings import Settings
from policies.current import CurrentPolicy
from policies.engine import SHIPPED, PolicySet
from state import log, store
from state.clock import WallClock
from state.decisions import Genesis
from state.errors import InputError
from state.files import write_once
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.rows import SwitchRow
from state.store import Connection, Database
from tools.servers import ensure_token

ROLES = ("viewer", "operator", "approver", "auditor", "admin")
MARKER = "steady.db"
KEY_FILE = Path("keys", "log_ed25519")
REMOVING = ".removing"
"""Stands in a workspace from before its first file is removed until after its last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """An opened workspace. `close` it when done."""

    home: Path
    settings: Settings
    db: Database
    token: str
    """Secret shared with our own servers."""

    @property
    def second_place(self) -> Path:
        return self.home / "checkpoints"

    @property
    def roles_file(self) -> Path:
        return self.home / "roles.toml"

    @property
    def key_file(self) -> Path:
        return self.home / KEY_FILE

    @property
    def policy_dir(self) -> Path:
        return self.settings.policy_dir or SHIPPED

    def approved_sha256(self) -> str:
        """Digest of the approved policy set."""
        with self.db.snapshot() as conn:
            return str(log.approved_policy(conn))

    def load_policy(self) -> CurrentPolicy:
        """The approved policy set, for those who act by it.

        Raises:
            InputError: the files are not the approved set.
        """
        return CurrentPolicy(self.policy_dir, PolicySet.load(self.policy_dir, self.approved_sha256()))

    def close(self) -> None:
        self.db.close()


def open_workspace(settings: Settings, *, create: bool) -> Workspace:
    """Open the workspace; with `create`, make it on the first start and write the genesis decision.

    Raises:
        InputError: there is none (and `create` is False), it is half removed, or it is damaged.
    """
    home = settings.home.resolve()
    if (home / REMOVING).exists():
        raise InputError(
            f"{settings.home} is half removed: `steady demo --fresh` was ended in the midst of it",
            remedy="Say `steady demo --fresh` again, or remove the folder",
        )
    exists = (home / MARKER).exists() or settings.database_url is not None
    if not exists and not create:
        raise InputError(
            f"{settings.home} is not a workspace",
            remedy="Run `steady up SPEC` or `steady demo` first, or name another one with --home",
        )
    if not exists:
        PolicySet.load(settings.policy_dir or SHIPPED)  # a set with an error is refused before anything is made
    _make_folders(home)
    db = Database.open(settings.database())
    try:
        db.upgrade()
        token = _token(home / "tokens" / "control")
        _first_start(db, settings, home)
    except BaseException:
        db.close()
        raise
    return Workspace(home=home, settings=settings, db=db, token=token)


def _make_folders(home: Path) -> None:
    try:
        for folder in (home, home / "keys", home / "tokens", home / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(
            f"{exc.filename}: a workspace cannot be made there: {exc.strerror}",
            remedy="Name another place with --home or STEADYHAND_HOME",
        ) from exc


def _token(path: Path) -> str:
    """The shared secret, made once with mode 0600."""
    ensure_token(path)
    return path.read_text().strip()


def _first_start(db: Database, settings: Settings, home: Path) -> None:
    """The genesis decision, once: it approves the policy set, names the key that signs, and says who holds which roles."""
    with db.snapshot() as conn:
        if log.approved_policy(conn) is not None:
            return
    policy = PolicySet.load(settings.policy_dir or SHIPPED)
    signer = load_or_create(home / KEY_FILE, "steadyhand")
    user = getpass.getuser()
    roles = {user: list(ROLES)}
    held = ", ".join(f'"{role}"' for role in ROLES)
    text = f'# Who may do what: user of the operating system -> roles.\n"{user}" = [{held}]\n'
    write_once(home / "roles.toml", text.encode())
    now = WallClock().now()
    with db.transaction() as conn:
        if log.approved_policy(conn) is None:
            genesis = Genesis(
                decision_id=Uuid7Source().new_id(), at=now, recorded_at=now, actor=f'User::"{user}"',
                summary=f"First start: {user} approves the policy set {policy.sha256[:12]} and holds every role.",
                policy_sha256=policy.sha256, signing_key=signer.vkey, roles=roles,
            )  # fmt: skip
            log.append(conn, genesis)
            keep_sources(conn, policy.sha256, policy.sources)


def keep_sources(conn: Connection, sha256: str, sources: Mapping[str, str]) -> None:
    """Keep the text of an approved policy set under its digest, so that a later one can be compared with it."""
    store.put(conn, SwitchRow(id=f"policy/{sha256}", body={"sources": dict(sources)}), fence=None)


def roles_of(workspace: Workspace, user: str) -> list[str]:
    """Roles of a user of the operating system, from the workspace's `roles.toml`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        table = tomllib.loads(workspace.roles_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError(f"{workspace.roles_file}: {exc}", remedy="Restore the file: user = [roles]") from exc
    held = table.get(user, [])
    if not isinstance(held, list) or not all(isinstance(role, str) for role in held):
        raise InputError(f"{workspace.roles_file}: {user} is not a list of roles", remedy='Write: user = ["approver"]')
    return [str(role) for role in held]


def require_role(workspace: Workspace, *roles: str) -> str:
    """The present user, if they hold one of `roles`.

    Raises:
        InputError: they do not.
    """
    user = getpass.getuser()
    if not set(roles) & set(roles_of(workspace, user)):
        names = " or ".join(repr(role) for role in roles)
        raise InputError(
            f"{user} does not hold the role {names}", remedy=f"Ask an admin to add it in {workspace.roles_file}"
        )
    return user


def domain_now(workspace: Workspace) -> datetime:
    """Domain time: where a replay stands if one is under way, else the time of day."""
    with workspace.db.transaction() as conn:
        row = store.get(conn, SwitchRow, "domain_time")
    if row is not None and row.body.get("at"):
        return datetime.fromisoformat(str(row.body["at"]))
    return WallClock().now()
