"""Putting a platform and a crew together; clients are imported here and only when asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from console.workspace import Workspace
from orchestrator.crew import Crew
from policies.current import Policy
from state.clock import Clock
from state.ids import Uuid7Source
from state.keys import Signer
from state.spec import ModelSpec
from tools.language import Completion, LanguageModel, Prompt
from tools.mesh.envoy import EnvoyMesh
from tools.ports import Platform, Registry
from tools.processes import start_ticks
from tools.servers import LocalServers


def laptop_platform(workspace: Workspace, specs: Mapping[str, ModelSpec], base_path: Path) -> Platform:
    """The embedded platform: kfp.local, MLflow on SQLite, a server process per version, a real Envoy.

    Relative paths of the specs start from `base_path`.
    """
    # Heavy clients: `steady status` must not pay for them.
    from tools.data import WorkspaceData
    from tools.features import FileFeatures
    from tools.metrics import EnvoyMetrics
    from tools.notify import AppriseNotifier
    from tools.outcomes import WorkspaceOutcomes
    from tools.pipelines.local import LocalPipelines

    home = workspace.home
    ports = {name: getattr(spec.serving, "port", 0) for name, spec in specs.items()}
    mesh = EnvoyMesh(home, ports=ports)
    return Platform(
        pipelines=LocalPipelines(home, tracking_uri=workspace.settings.mlflow_tracking_uri),
        registry=registry(workspace),
        servers=LocalServers(home),
        mesh=mesh,
        metrics=EnvoyMetrics(home),
        data=WorkspaceData(home),
        outcomes=WorkspaceOutcomes(home),
        notifier=AppriseNotifier(workspace.settings.notify_urls, sent=home / "notified.json"),
        specs=dict(specs),
        features=FileFeatures(specs, base_path) if any(spec.offline for spec in specs.values()) else None,
    )


def registry(workspace: Workspace) -> Registry:
    """The workspace's registry alone: for a command that asks whether a version exists."""
    from tools.registry import MlflowModels

    return MlflowModels.open(workspace.home, workspace.settings.mlflow_tracking_uri)


def language_model(workspace: Workspace) -> LanguageModel | None:
    """The model that the settings name; None where they name none."""
    name = workspace.settings.language_model
    return _OpenedWhenAsked(name=name) if name is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenedWhenAsked:
    """Most goals are read by the rules: they need no provider's package, and wait for none."""

    name: str

    def complete(self, prompt: Prompt) -> Completion:
        from tools.chat_models import open_chat_model

        return open_chat_model(self.name).complete(prompt)


def this_process() -> str:
    """This process as the owner of a lease."""
    return f"{socket.gethostname()}/{os.getpid()}/{start_ticks(os.getpid())}"


def owner_is_dead(owner: str) -> bool:
    """Whether a lease's owner was a process of this machine that runs no more; False where nobody can tell."""
    return _pid_here(owner) is not None and living_owner(owner) is None


def living_owner(owner: str) -> int | None:
    """The pid of a lease's owner, if it is a process of this machine and runs."""
    pid = _pid_here(owner)
    return pid if pid is not None and str(start_ticks(pid)) == owner.rpartition("/")[2] else None


def _pid_here(owner: str) -> int | None:
    """The pid in a lease's owner, `host/pid/start ticks`, if the host is this one."""
    host, _, pid = owner.rpartition("/")[0].rpartition("/")
    return int(pid) if host == socket.gethostname() and pid.isdigit() else None


def data_plane(home: Path) -> tuple[LocalServers, EnvoyMesh]:
    """Servers and mesh of a workspace without the rest of its platform."""
    return LocalServers(home), EnvoyMesh(home)


def make_crew(
    workspace: Workspace,
    platform: Platform,
    clock: Clock,
    say: Callable[[str, str], None],
    *,
    policy: Policy,
    signer: Signer,
    patience: timedelta | None = None,
) -> Crew:
    """A crew of this process over the workspace's state."""
    return Crew(
        db=workspace.db,
        policy=policy,
        platform=platform,
        clock=clock,
        ids=Uuid7Source(),
        owner=this_process(),
        signer=signer,
        second_place=workspace.second_place,
        say=say,
        patience=patience,
    )
