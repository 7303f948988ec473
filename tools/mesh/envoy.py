"""The Mesh port on one machine: Istio documents in files, served by one real Envoy through file xDS."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from state.errors import ToolRejected, ToolUnavailable
from tools.mesh import documents as istio
from tools.mesh import translate
from tools.mesh.envoy_process import EnvoyProcess
from tools.mesh.patch import Document, Operation, apply_patch
from tools.mesh.store import Documents, DocumentStore, Stored
from tools.ports import Endpoint, Route

log = logging.getLogger(f"steadyhand.{__name__}")


class EnvoyMesh:
    """Each model has its file, its listener and its port; all share one process that outlives ours."""

    def __init__(self, workspace: Path, *, ports: Mapping[str, int] | None = None, concurrency: int = 2) -> None:
        """`ports` gives a model's route a port; 0, or a model that is not named, takes a free one at its first stage."""
        self.store = DocumentStore(workspace / "mesh")
        self.envoy = EnvoyProcess(workspace / "envoy", concurrency=concurrency)
        self._ports = dict(ports or {})

    def start(self) -> None:
        """Serve every stored model; starts Envoy where it does not run.

        A model whose documents are refused is logged, and the others are served.
        """
        for model in self.store.models():
            try:
                self._serve(model)
            except ToolRejected as exc:
                log.error("%s is not served: %s", model, exc)

    def stop(self) -> None:
        """End Envoy after the requests in flight; the documents stay. Idempotent."""
        self.envoy.stop()

    def read(self, model: str) -> Route | None:
        """The route as stored. A running Envoy that lags behind, for instance after an edit by hand, is brought up.

        Raises:
            ToolRejected: the stored documents are broken; the message names file or object.
        """
        stored = self.store.read(model)
        if stored is None:
            return None
        if self.envoy.running() is not None and not self._confirmed(model, stored):
            try:
                self._serve(model)
            except ToolUnavailable as exc:
                log.warning("%s: the stored route is not served: %s", model, exc)
        return self._route(model, self.store.read(model) or stored)

    def stage(self, *, endpoint: Endpoint, key: str) -> Route:
        """Add the version's destination at weight 0 (100 where it is the first), last in the route.

        A version that is there already gets the endpoint's address. Idempotent.
        """
        model, version = endpoint.model, endpoint.version
        with self.store.lock(model):
            stored = self.store.read(model)
            if stored is None:
                self.store.write(model, self._first(endpoint, key), expected=None)
            else:
                documents = stored.documents
                entry = _with_endpoint(documents.service_entry, endpoint)
                rule = documents.destination_rule
                changed = replace(
                    documents,
                    service_entry=entry,
                    destination_rule=apply_patch(rule, istio.subset_operations(rule, version)),
                )
                self._patch(model, stored, changed, lambda s: istio.stage_operations(s, version), key=key)
        return self._served_route(model)

    def set_weights(self, *, model: str, weights: Mapping[str, int], key: str, revision: str | None = None) -> Route:
        """Write exactly these weights and the key; nothing else of the documents changes.

        Where the stored document carries `key`, the write has been made, and only Envoy is brought up to it: weights
        that differ from it then are somebody's later edit.

        Raises:
            ToolUnavailable: the stored revision is not `revision`, or Envoy does not confirm.
            ToolRejected: no route, a version without a destination, or weights that do not sum to 100.
        """
        with self.store.lock(model):
            stored = self._stored(model)
            if istio.key_of(stored.documents.virtual_service) != key:
                if revision is not None and revision != stored.revision:
                    raise ToolUnavailable(f"{model}: the route is at revision {stored.revision}, not {revision}")
                self._patch(model, stored, stored.documents, lambda s: istio.weight_operations(s, weights), key=key)
        return self._served_route(model)

    def retire(self, *, model: str, version: str, key: str) -> Route:
        """Remove the version's destination, subset and endpoint; refused unless its weight is 0. Idempotent."""
        with self.store.lock(model):
            stored = self._stored(model)
            documents, rule = stored.documents, stored.documents.destination_rule
            changed = replace(
                documents,
                service_entry=_without_endpoint(documents.service_entry, version),
                destination_rule=apply_patch(rule, istio.subset_removal(rule, version)),
            )

            def operations(service: Document) -> list[Operation]:
                header = istio.header_removal(service, version)
                without = apply_patch(service, header)
                return [*header, *istio.retire_operations(without, version)]

            self._patch(model, stored, changed, operations, key=key)
        return self._served_route(model)

    def set_mirror(self, *, model: str, version: str | None, percent: int = 100, key: str) -> Route:
        """Copy `percent` of the requests to `version`, which counts nowhere; None ends it. Idempotent."""
        with self.store.lock(model):
            stored = self._stored(model)
            self._patch(
                model, stored, stored.documents, lambda s: istio.mirror_operations(s, version, percent), key=key
            )
        return self._served_route(model)

    def set_header_route(self, *, model: str, version: str, header: str, value: str | None, key: str) -> Route:
        """Send requests with `header: value` to `version`; None removes that route. Idempotent."""

        def operations(service: Document) -> list[Operation]:
            if value is None:
                return istio.header_removal(service, version)
            return istio.header_operations(service, header=header, value=value, version=version)

        with self.store.lock(model):
            stored = self._stored(model)
            self._patch(model, stored, stored.documents, operations, key=key)
        return self._served_route(model)

    def find(self, key: str) -> Route | None:
        for model in self.store.models():
            stored = self.store.read(model)
            if stored is not None and istio.key_of(stored.documents.virtual_service) == key:
                return self._route(model, stored)
        return None

    def _stored(self, model: str) -> Stored:
        stored = self.store.read(model)
        if stored is None:
            raise ToolRejected(f"VirtualService {model}: there is none, stage a version first")
        return stored

    def _first(self, endpoint: Endpoint, key: str) -> Documents:
        model, version = endpoint.model, endpoint.version
        port = self._ports.get(model) or _free_port()
        return Documents(
            virtual_service=istio.virtual_service(model, host=model, version=version, key=key),
            destination_rule=istio.destination_rule(model, host=model, version=version),
            service_entry=_with_endpoint(_service_entry(model, port), endpoint),
        )

    def _patch(
        self,
        model: str,
        stored: Stored,
        changed: Documents,
        operations: Callable[[Document], Sequence[Operation]],
        *,
        key: str,
    ) -> None:
        """Write `changed` with its VirtualService patched; nothing is written where nothing differs."""
        service = changed.virtual_service
        patched = apply_patch(service, [*operations(service), *istio.key_operations(service, key)])
        documents = replace(changed, virtual_service=patched)
        if documents == stored.documents:
            return
        # Before it is stored: what is stored must be something that can be served.
        translate.clusters(model, documents)
        translate.route_configuration(model, documents)
        self.store.write(model, documents, expected=stored.revision)

    def _served_route(self, model: str) -> Route:
        self._serve(model)
        return self._route(model, self._stored(model))

    def _serve(self, model: str) -> None:
        """Bring Envoy to the stored documents of `model` and return once it confirms.

        Clusters come before the routes that name them, and go after: a request never meets a missing one.
        """
        self.envoy.ensure()
        with self.envoy.lock("push"):
            stored = self._stored(model)
            wanted = translate.clusters(model, stored.documents)
            routes = translate.route_configuration(model, stored.documents)
            _, running = self.envoy.read_resources("cds", "cds")
            _, listeners = self.envoy.read_resources("lds", "lds")
            others = [item for item in running if not item["name"].startswith(f"{model}.v")]
            names = {item["name"] for item in wanted}
            leaving = [item for item in running if item not in others and item["name"] not in names]
            self._push("cds", [*others, *wanted, *leaving])
            self.envoy.write_resources("rds", model, [routes], version=stored.revision)
            file = self.envoy.resource_file("rds", model)
            own = translate.listener(model, stored.documents, str(file), str(file.parent))
            self._push("lds", [*(item for item in listeners if item["name"] != model), own])
            self.envoy.confirm(_rds_version(model), stored.revision)
            if leaving:
                self._push("cds", [*others, *wanted])

    def _push(self, kind: str, resources: Sequence[Document]) -> None:
        version, running = self.envoy.read_resources(kind, kind)
        ordered = sorted(resources, key=lambda item: str(item["name"]))
        if ordered != running:
            version = self.envoy.write_resources(kind, kind, ordered)
        manager = {"cds": "cluster_manager.cds", "lds": "listener_manager.lds"}[kind]
        self.envoy.confirm(f"{manager}.version_text", version)

    def _confirmed(self, model: str, stored: Stored) -> bool:
        """Whether Envoy says that it runs this revision, with the clusters that were written for it."""
        statistics = {_rds_version(model): stored.revision}
        for kind, manager in (("cds", "cluster_manager"), ("lds", "listener_manager")):
            statistics[f"{manager}.{kind}.version_text"] = self.envoy.read_resources(kind, kind)[0]
        try:
            found = self.envoy.texts(r"version_text$")
        except ToolUnavailable:
            return False
        return all(found.get(name) == version for name, version in statistics.items())

    def _route(self, model: str, stored: Stored) -> Route:
        host, port = translate.address_of(stored.documents)
        service = stored.documents.virtual_service
        istio.validate(service, stored.documents.destination_rule)
        return Route(
            model=model,
            weights=istio.managed_route(service).weights,
            revision=stored.revision,
            key=istio.key_of(service),
            served=self._confirmed(model, stored),
            address=f"http://{host}:{port}",
        )


def _rds_version(model: str) -> str:
    return f"http.{model}.rds.{model}.version_text"


def _service_entry(model: str, port: int) -> Document:
    return {
        "apiVersion": istio.API_VERSION,
        "kind": "ServiceEntry",
        "metadata": {"name": model},
        "spec": {
            "hosts": [model],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{"number": port, "name": "http", "protocol": "HTTP"}],
            "endpoints": [],
        },
    }


def _with_endpoint(entry: Document, endpoint: Endpoint) -> Document:
    """`entry` with the version's address as it is now; the order of the others stays."""
    port_name = entry["spec"]["ports"][0]["name"]
    item = {
        "address": endpoint.host,
        "ports": {port_name: endpoint.port},
        "labels": {"version": endpoint.version},
    }
    endpoints = list(entry["spec"].get("endpoints") or [])
    places = [index for index, other in enumerate(endpoints) if other["labels"]["version"] == endpoint.version]
    if places:
        endpoints[places[0]] = {**endpoints[places[0]], **item}
    else:
        endpoints.append(item)
    return {**entry, "spec": {**entry["spec"], "endpoints": endpoints}}


def _without_endpoint(entry: Document, version: str) -> Document:
    endpoints = [item for item in entry["spec"].get("endpoints") or [] if item["labels"]["version"] != version]
    return {**entry, "spec": {**entry["spec"], "endpoints": endpoints}}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
