"""The world's model registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evals.world.faults import port_call
from evals.world.package import verified
from evals.world.records import ModelState, Run, Version
from evals.world.world import World
from state.errors import InputError, ToolRejected
from tools.ports import ModelVersion


class WorldRegistry:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("registry.register", effect=True)
    def register(self, *, model: str, mlflow_run_id: str, tags: Mapping[str, str], key: str) -> ModelVersion:
        state = self._model(model)
        for version in state.versions:
            if version.key == key:
                return self._seen(model, state, version)
        run = self._run(mlflow_run_id)
        if run is None or run.model != model:
            raise ToolRejected(f"{model}: no tracked run {mlflow_run_id!r} with a model package")
        kept = {"steadyhand.key": key, "steadyhand.package_sha256": str(run.outputs["package_sha256"])}
        number = str(len(state.versions) + 1)
        version = Version(version=number, key=key, mlflow_run_id=mlflow_run_id, tags={**tags, **kept})
        state.versions.append(version)
        self.world.effect(
            "registry.register", model=model, key=key, args={"version": number, "mlflow_run_id": mlflow_run_id}
        )
        return self._seen(model, state, version)

    @port_call("registry.find")
    def find(self, key: str) -> ModelVersion | None:
        """The version that `key` registered, or that `key` pointed an alias at and that still bears it."""
        for model, state in self.world.state.models.items():
            borne = [state.aliases[alias] for alias, writer in state.alias_keys.items() if writer == key]
            for version in state.versions:
                if version.key == key or version.version in borne:
                    return self._seen(model, state, version)
        return None

    @port_call("registry.get")
    def get(self, model: str, version: str) -> ModelVersion | None:
        state = self.world.state.models.get(model)
        found = [v for v in state.versions if v.version == version] if state is not None else []
        return self._seen(model, state, found[0]) if state is not None and found else None

    @port_call("registry.versions")
    def versions(self, model: str) -> Sequence[ModelVersion]:
        state = self.world.state.models.get(model)
        return [self._seen(model, state, version) for version in state.versions] if state is not None else []

    @port_call("registry.set_alias", effect=True)
    def set_alias(self, *, model: str, alias: str, version: str, key: str) -> None:
        state = self._model(model)
        self._version(model, version)
        if state.aliases.get(alias) == version and state.alias_keys.get(alias) == key:
            return
        state.aliases[alias], state.alias_keys[alias] = version, key
        self.world.effect(f"registry.alias.{alias}", model=model, key=key, args={"version": version})

    @port_call("registry.delete_alias", effect=True)
    def delete_alias(self, *, model: str, alias: str, key: str) -> None:
        state = self._model(model)
        if alias in state.aliases:
            del state.aliases[alias], state.alias_keys[alias]
            self.world.effect(f"registry.delete_alias.{alias}", model=model, key=key, args={})

    @port_call("registry.package")
    def package(self, model: str, version: str) -> Path:
        run = self._run(self._version(model, version).mlflow_run_id)
        assert run is not None
        return verified(Path(str(run.outputs["package"])))

    @port_call("registry.metrics")
    def metrics(self, model: str, version: str) -> Mapping[str, float]:
        run = self._run(self._version(model, version).mlflow_run_id)
        found = run.outputs["metrics"] if run is not None else None
        return {k: float(v) for k, v in found.items() if isinstance(v, float)} if isinstance(found, dict) else {}

    def _run(self, mlflow_run_id: str) -> Run | None:
        return self.world.state.runs.get(self.world.state.tracked.get(mlflow_run_id, ""))

    def _model(self, model: str) -> ModelState:
        try:
            return self.world.model(model)
        except InputError as exc:
            raise ToolRejected(str(exc)) from exc

    def _version(self, model: str, version: str) -> Version:
        for found in self._model(model).versions:
            if found.version == version:
                return found
        raise ToolRejected(f"{model}: version {version} is not in the registry")

    @staticmethod
    def _seen(model: str, state: ModelState, version: Version) -> ModelVersion:
        return ModelVersion(
            model=model,
            version=version.version,
            key=version.key,
            mlflow_run_id=version.mlflow_run_id,
            aliases=tuple(sorted(alias for alias, number in state.aliases.items() if number == version.version)),
            tags=dict(version.tags),
        )
