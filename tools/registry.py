"""The model registry on MLflow: versions, aliases and packages. Never stages, never a server.

A package may also be registered by anybody with plain MLflow calls, for instance from a script of another team:

    client = MlflowClient(tracking_uri="sqlite:////path/to/.steady/mlflow/mlflow.db")
    run = client.create_run(client.create_experiment("flights"))
    client.log_artifacts(run.info.run_id, "path/to/package", "package")
    client.create_registered_model("flights")
    client.create_model_version("flights", f"{run.info.artifact_uri}/package", run_id=run.info.run_id)

`register_package` is these calls. The source is any folder of artifacts with `model.onnx`, `contract.json`,
`profile.bin` and `SHA256SUMS` in it or in its folder `package`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from state.errors import ToolRejected, ToolUnavailable
from tools.packaging import SUMS, Package, check_package
from tools.ports import ModelVersion
from tools.tracking import KEY_TAG, PACKAGE, PACKAGE_TAG, Tracking, mlflow_errors

_PAGE = 1_000


class MlflowModels:
    """`Registry` on an MLflow store; packages are copied below `cache` and checked at every use."""

    def __init__(self, tracking: Tracking, *, cache: Path) -> None:
        self._tracking = tracking
        self._client = tracking.client
        self._cache = cache.absolute()

    @classmethod
    def open(cls, root: Path, tracking_uri: str | None = None) -> MlflowModels:
        """The registry of workspace `root`: embedded in it, or at `tracking_uri`."""
        tracking = Tracking(tracking_uri) if tracking_uri else Tracking.embedded(root)
        return cls(tracking, cache=root / "mlflow" / "packages")

    def register(self, *, model: str, mlflow_run_id: str, tags: Mapping[str, str], key: str) -> ModelVersion:
        """Make the package logged by `mlflow_run_id` a version of `model`, once per `key`.

        Raises:
            ToolRejected: no such run, or its package is missing or damaged.
            ToolUnavailable: MLflow gives no answer.
        """
        with mlflow_errors(f"model {model}"):
            existing = self._search(model, key)
            if existing is not None:
                return existing
            run = self._client.get_run(mlflow_run_id)
            source = f"{run.info.artifact_uri}/{PACKAGE}"
            incoming = self._cache / ".incoming" / key
            try:
                package = self._fetch(source, incoming)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
            expected = run.data.tags.get(PACKAGE_TAG, package.sha256)
            if package.sha256 != expected:
                raise ToolRejected(f"the package of run {mlflow_run_id} is not the one that was tracked")
            self._ensure_model(model)
            created = self._client.create_model_version(
                model,
                source,
                run_id=mlflow_run_id,
                tags={**tags, KEY_TAG: key, PACKAGE_TAG: package.sha256},
            )
            return self._version(self._client.get_model_version(model, created.version))

    def find(self, key: str) -> ModelVersion | None:
        """The version that `key` registered, or that `key` pointed an alias at and that still bears it."""
        with mlflow_errors(f"key {key[:12]}"):
            registered = self._search(None, key)
            if registered is not None:
                return registered
            for entry in self._client.search_registered_models(max_results=_PAGE):
                for alias, number in entry.aliases.items():
                    version = self._version(self._client.get_model_version(entry.name, str(number)))
                    if version.tags.get(_alias_tag(alias)) == key:
                        return version
        return None

    def get(self, model: str, version: str) -> ModelVersion | None:
        """Version `version` of `model`; None where there is none."""
        with mlflow_errors(f"model {model} version {version}"):
            try:
                return self._version(self._client.get_model_version(model, version))
            except MlflowException as exc:
                if exc.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    return None
                raise

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """Every version, oldest first."""
        with mlflow_errors(f"model {model}"):
            found = self._client.search_model_versions(f"name = '{model}'", max_results=_PAGE)
            numbers = sorted(int(entry.version) for entry in found)
            return [self._version(self._client.get_model_version(model, str(number))) for number in numbers]

    def set_alias(self, *, model: str, alias: str, version: str, key: str) -> None:
        """Point `alias` at `version`. Idempotent; `find(key)` sees it only once both writes are done.

        Raises:
            ToolRejected: no such version.
        """
        with mlflow_errors(f"model {model} version {version}"):
            self._client.get_model_version(model, version)
            self._client.set_registered_model_alias(model, alias, version)
            self._client.set_model_version_tag(model, version, _alias_tag(alias), key)

    def delete_alias(self, *, model: str, alias: str, key: str) -> None:
        """Remove `alias`; nothing happens where there is none. `find` has nothing to show for it: repeat it instead."""
        with mlflow_errors(f"model {model} alias {alias}"):
            entry = self._client.get_registered_model(model)
            if alias not in entry.aliases:
                return
            self._client.set_registered_model_tag(model, f"{_alias_tag(alias)}.deleted", key)
            self._client.delete_registered_model_alias(model, alias)

    def package(self, model: str, version: str) -> Path:
        """A local folder with the version's package, its digests checked now.

        Raises:
            ToolRejected: no such version, or its package is missing or damaged.
            ToolUnavailable: the store gives no answer.
        """
        with mlflow_errors(f"model {model} version {version}"):
            entry = self._client.get_model_version(model, version)
            source = self._client.get_model_version_download_uri(model, version)
        expected = entry.tags.get(PACKAGE_TAG)
        directory = self._cache / model / version
        if directory.exists():
            with suppress(ToolRejected):
                return _expect(check_package(directory), expected, source).directory
        shutil.rmtree(directory, ignore_errors=True)
        incoming = self._cache / ".incoming" / f"{model}-{version}"
        try:
            package = _expect(self._fetch(source, incoming), expected, source)
            directory.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(package.directory, directory)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return check_package(directory).directory

    def metrics(self, model: str, version: str) -> Mapping[str, float]:
        """Metrics of the version's tracked run; empty where there is none."""
        with mlflow_errors(f"model {model} version {version}"):
            run_id = self._client.get_model_version(model, version).run_id
            if not run_id:
                return {}
            try:
                return dict(self._client.get_run(run_id).data.metrics)
            except MlflowException as exc:
                if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise

    def _fetch(self, source: str, directory: Path) -> Package:
        shutil.rmtree(directory, ignore_errors=True)
        try:
            folder = self._tracking.fetch(source, directory)
        except ToolUnavailable as exc:
            if source.startswith(("file:", "/")):  # a local folder that is not there will not come back
                raise ToolRejected(f"{source}: no package can be read there") from exc
            raise
        nested = folder / PACKAGE
        return check_package(nested if not (folder / SUMS).exists() and nested.is_dir() else folder)

    def _search(self, model: str | None, key: str) -> ModelVersion | None:
        condition = f"tags.`{KEY_TAG}` = '{key}'" + (f" and name = '{model}'" if model else "")
        found = self._client.search_model_versions(condition, max_results=1)
        return self._version(self._client.get_model_version(found[0].name, found[0].version)) if found else None

    def _ensure_model(self, model: str) -> None:
        try:
            self._client.create_registered_model(model)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version(self, entry: Any) -> ModelVersion:
        return ModelVersion(
            model=entry.name,
            version=str(entry.version),
            key=entry.tags.get(KEY_TAG),
            mlflow_run_id=entry.run_id or None,
            aliases=tuple(sorted(entry.aliases or ())),
            tags=dict(entry.tags),
        )


def register_package(package: Path, *, model: str, root: Path, tracking_uri: str | None = None) -> str:
    """Register the package at `package` by plain MLflow calls, as another team would; returns the version.

    Raises:
        ToolRejected: the package is damaged.
        ToolUnavailable: MLflow gives no answer.
    """
    check_package(package)
    tracking = Tracking(tracking_uri) if tracking_uri else Tracking.embedded(root)
    with mlflow_errors(f"model {model}"):
        run = tracking.client.create_run(tracking.experiment(model))
        tracking.client.log_artifacts(run.info.run_id, str(package), PACKAGE)
        tracking.client.set_terminated(run.info.run_id, "FINISHED")
        with suppress(MlflowException):
            tracking.client.create_registered_model(model)
        version = tracking.client.create_model_version(
            model, f"{run.info.artifact_uri}/{PACKAGE}", run_id=run.info.run_id
        )
    return str(version.version)


def _alias_tag(alias: str) -> str:
    return f"steadyhand.alias.{alias}.key"


def _expect(package: Package, expected: str | None, source: str) -> Package:
    if expected is not None and package.sha256 != expected:
        raise ToolRejected(f"the package at {source} is not the one that was registered")
    return package
