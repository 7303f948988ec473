"""One process looks after a model: who comes second is refused before it touches a file."""

from __future__ import annotations

import getpass
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from console import demo
from console.preflight import check_port, claim
from console.settings import Settings
from console.specs import load_spec
from console.wiring import this_process
from console.workspace import ROLES, Workspace, open_workspace, roles_of
from state import leases
from state.errors import InputError
from tests.e2e import datasets
from tools.mesh.envoy import EnvoyMesh
from tools.ports import Endpoint
from tools.processes import start_ticks

SCOPE = "model/flights"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "ws")


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with closing(open_workspace(settings, create=True)) as opened:
        yield opened


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


def give_lease(workspace: Workspace, pid: int) -> None:
    owner = f"{socket.gethostname()}/{pid}/{start_ticks(pid)}"
    with workspace.db.transaction() as conn:
        assert leases.acquire(conn, SCOPE, owner, 60) is not None


def owner_of(workspace: Workspace) -> str | None:
    with workspace.db.snapshot() as conn:
        lease = leases.holder(conn, SCOPE)
    return lease.owner if lease else None


def test_a_claim_holds_before_the_first_look(workspace: Workspace) -> None:
    claim(workspace, "flights")
    assert owner_of(workspace) == this_process()
    claim(workspace, "flights")


def test_a_model_that_a_living_process_looks_after_is_refused(
    workspace: Workspace, other: subprocess.Popen[bytes]
) -> None:
    give_lease(workspace, other.pid)
    with pytest.raises(InputError, match=f"flights is up already: process {other.pid}"):
        claim(workspace, "flights")


def test_a_dead_owner_is_taken_over_at_once(workspace: Workspace, other: subprocess.Popen[bytes]) -> None:
    give_lease(workspace, other.pid)
    other.kill()
    other.wait()
    claim(workspace, "flights")
    assert owner_of(workspace) == this_process()


def test_a_fresh_start_takes_no_workspace_away_from_a_living_process(
    settings: Settings, workspace: Workspace, other: subprocess.Popen[bytes]
) -> None:
    give_lease(workspace, other.pid)
    with pytest.raises(InputError, match=f"process {other.pid}"):
        demo.remove(settings)
    assert (settings.home / "steady.db").exists()
    other.kill()
    other.wait()
    demo.remove(settings)
    assert not settings.home.exists()


def test_a_damaged_workspace_is_removed(settings: Settings, workspace: Workspace) -> None:
    workspace.close()
    (settings.home / "steady.db").write_bytes(b"no database" * 1000)
    demo.remove(settings)
    assert not settings.home.exists()


def test_a_first_start_that_was_ended_while_it_made_the_secret_is_begun_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(n_bytes: int) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(secrets, "token_urlsafe", ended)
        with pytest.raises(KeyboardInterrupt):
            open_workspace(settings, create=True)
    with closing(open_workspace(settings, create=True)) as workspace:
        assert len(workspace.token) > 30
        assert roles_of(workspace, getpass.getuser()) == list(ROLES)


def test_a_removal_that_was_ended_in_its_midst_is_finished_and_never_taken_for_a_workspace(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(100))
    for name, real in (("rmtree", shutil.rmtree), ("rmdir", Path.rmdir), ("unlink", Path.unlink)):
        owner = shutil if name == "rmtree" else Path

        def limited(*arguments: Any, real: Callable[..., None] = real, **more: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*arguments, **more)

        monkeypatch.setattr(owner, name, limited)
    ended = []
    for n_removed in range(20):
        left = iter(range(100))
        open_workspace(settings, create=True).close()
        left = iter(range(n_removed))
        try:
            demo.remove(settings)
        except KeyboardInterrupt:
            ended.append(n_removed)
            if list(settings.home.iterdir()):
                assert demo.half_removed(settings)
                for create in (True, False):
                    with pytest.raises(InputError, match="half removed"):
                        open_workspace(settings, create=create)
        left = iter(range(100))
        demo.remove(settings)
        assert not settings.home.exists()
    assert 5 <= len(ended) < 20


def test_a_folder_that_holds_files_of_somebody_else_stays(settings: Settings) -> None:
    (settings.home / "thesis").mkdir(parents=True)
    demo.remove(settings)
    assert not settings.home.exists()

    (settings.home / "thesis").mkdir(parents=True)
    (settings.home / "thesis" / "chapter.tex").touch()
    with pytest.raises(InputError, match="is not a workspace"):
        demo.remove(settings)
    assert (settings.home / "thesis" / "chapter.tex").exists()


def test_a_route_whose_port_somebody_took_is_refused_by_its_number(workspace: Workspace, tmp_path: Path) -> None:
    loaded = load_spec(datasets.write(tmp_path, "still"))
    check_port(workspace, loaded)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mesh = EnvoyMesh(workspace.home, ports={"loans": port})
        server = Endpoint(model="loans", version="1", key="k", host="127.0.0.1", port=1, ready=True)
        mesh.store.write("loans", mesh._first(server, "k"), expected=None)
        with pytest.raises(
            InputError, match=f"port {port} of loans's route cannot be listened on: Address already in use"
        ):
            check_port(workspace, loaded)
    check_port(workspace, loaded)
