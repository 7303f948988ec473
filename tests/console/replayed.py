"""A workspace as a replay of four weeks leaves it: real rows, packages, ledger and log, written by hand.

Version 1 serves first. On day 9 a faulty day is quarantined; on day 12 a win brings version 2, which is promoted on day
15; version 3, a person's wish, is rolled back on day 21. The truth turns over on day 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl

from console.settings import Settings
from console.signing import load_signer
from console.workspace import Workspace, open_workspace
from state import leases, ledger, log, store
from state.canonical import action_key, digest
from state.decisions import ActionChanged, ActionDecided, ApprovalChanged, IncidentChanged, Observed
from state.errors import ToolRejected, ToolUnavailable
from state.ids import Uuid7Source
from state.leases import Fence
from state.plans import ActionKind, Proposal
from state.rows import ApprovalRow, BlockRow, EvidenceRow, IncidentRow, RolloutRow, Row, RunRow, SignalRow
from state.spec import ModelSpec
from tests.tools.control_rows import DELAY, START, package_of, rows_of, spec_of
from tools.data import WorkspaceData, traffic
from tools.importer import import_files
from tools.outcomes import WorkspaceOutcomes
from tools.packaging import PackageScorer
from tools.ports import Platform, ServiceSample

DAY = timedelta(days=1)
N_DAYS = 28
END = START + N_DAYS * DAY
TURN = START + 5 * DAY
FAULTY = (START + 8 * DAY).date().isoformat()
IDS = Uuid7Source()
HOSTILE = "<script>alert('x')</script> & $a_b$ \u6f22"
"""What somebody might write where a sentence is asked for."""


class Packages:
    """The registry's part that the summary reads."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    def package(self, model: str, version: str) -> Path:
        if version not in self.folders:
            raise ToolRejected(f"{model}: no version {version}")
        return self.folders[version]


class Counters:
    """The proxy's counters; those of version 1 ended with its server."""

    def sample(self, model: str, version: str) -> ServiceSample | None:
        if version == "2":
            return ServiceSample(n_requests=700, n_errors=4, latency_buckets_ms={}, source="proxy/2")
        raise ToolUnavailable(f"{model}: no counters of version {version}")


class Replayed:
    """The workspace, its platform, and helpers that write what the loop would have written."""

    def __init__(self, folder: Path, workspace: Workspace, **changes: Any) -> None:
        self.workspace, self.folder = workspace, folder
        self.spec: ModelSpec = spec_of(**changes)
        with workspace.db.transaction() as conn:
            lease = leases.acquire(conn, "model/parcels", "tests", 600)
        assert lease is not None
        self.fence: Fence = lease.fence
        self.outcomes = WorkspaceOutcomes(workspace.home)
        self.registry = Packages({})
        nothing: Any = None
        registry: Any = self.registry
        self.platform = Platform(
            pipelines=nothing, registry=registry, servers=nothing, mesh=nothing, metrics=Counters(),
            data=WorkspaceData(workspace.home), outcomes=self.outcomes, notifier=nothing, specs={"parcels": self.spec},
        )  # fmt: skip

    def import_rows(self) -> None:
        """History and traffic from one file, as `steady up` imports them."""
        rows = pl.concat([
            rows_of("binary", START - 20 * DAY, 20), rows_of("binary", START, N_DAYS, turn=TURN, seed=6),
        ])  # fmt: skip
        late = rows.select(pl.col("event_time").alias("at"), "weight", "lane", (pl.col("label") == 1).alias("late"))
        late.write_parquet(self.folder / "rows.parquet")
        import_files(self.workspace.home, self.spec, self.folder, until=START)

    def make_packages(self) -> None:
        history = self.platform.data.history("parcels", start=None, end=START - DELAY).collect()
        turned = self.live().filter(pl.col("event_time") >= TURN)
        self.registry.folders = {
            "1": package_of(self.spec, history, self.folder / "v1"),
            "2": package_of(self.spec, turned.filter(pl.col("event_time") < START + 9 * DAY), self.folder / "v2"),
            "3": package_of(self.spec, history.head(200), self.folder / "v3"),
        }

    def live(self) -> pl.DataFrame:
        return pl.concat([block.rows for block in traffic(self.workspace.home, "parcels", start=START, end=END)])

    def answer(self) -> pl.DataFrame:
        """Prediction records by the versions of the story, and labels `DELAY` later; returns the records."""
        day = (pl.col("event_time") - START).dt.total_days()
        half = pl.int_range(pl.len()) % 2 == 0
        version = (
            pl.when(day < 12).then(pl.lit("1"))
            .when(day < 15).then(pl.when(half).then(pl.lit("2")).otherwise(pl.lit("1")))
            .when((day == 20) & half).then(pl.lit("3")).otherwise(pl.lit("2"))
        )  # fmt: skip
        rows = self.live().with_columns(version.alias("version"))
        parts = []
        for (name,), part in rows.partition_by("version", as_dict=True).items():
            scores = PackageScorer(self.registry.package("parcels", str(name))).score(part)
            parts.append(part.with_columns(pl.Series("score", scores)))
        heavy = (
            pl.when(pl.col("weight") > 2)
            .then(pl.lit(["out_of_range:weight"]))
            .otherwise(pl.lit([], pl.List(pl.String)))
        )
        records = (
            pl.concat(parts)
            .sort("event_time", "request_id")
            .with_columns(
                pl.lit(False).alias("mirrored"), heavy.alias("flags"), pl.col("event_time").alias("recorded_at")
            )
        )
        for (date,), part in (
            records.with_columns(pl.col("event_time").dt.date().alias("date"))
            .partition_by("date", as_dict=True, include_key=False)
            .items()
        ):
            file = self.workspace.home / "predictions" / "parcels" / f"day={date}" / "a.parquet"
            file.parent.mkdir(parents=True)
            part.drop("label").write_parquet(file)
        labels = records.filter(pl.col("label").is_not_null()).select(
            "request_id", "label", (pl.col("event_time") + DELAY).alias("available_at")
        )
        self.outcomes.record("parcels", labels, key="labels")
        return records

    def put(self, *rows: Row) -> None:
        with self.workspace.db.transaction() as conn:
            for row in rows:
                store.put(conn, row, fence=self.fence)

    def say(
        self, decision: type[Observed | IncidentChanged | ActionDecided | ApprovalChanged], at: datetime, **fields: Any
    ) -> None:
        stamp = {"decision_id": IDS.new_id(), "at": at, "recorded_at": at, "model": "parcels"}
        with self.workspace.db.transaction() as conn:
            log.append(conn, decision(**{"actor": 'System::"steadyhand"', **stamp, **fields}))

    def act(
        self, kind: ActionKind, at: datetime, *, subject: str, run: str, args: dict[str, Any],
        observed: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """One action, decided, carried out and verified at `at`, through the real ledger."""
        wanted = Proposal(
            kind=kind, model="parcels", subject_id=subject, args=args, reason="as told", proposed_by="deployment"
        )
        key = action_key(subject_id=subject, kind=kind, args=args, attempt=1)
        common: dict[str, Any] = {
            "recorded_at": at,
            "at": at,
            "model": "parcels",
            "run_id": run,
            "actor": 'Agent::"deployment"',
        }
        decided = ActionDecided(
            decision_id=IDS.new_id(), summary=f"{kind}: allow", action=kind, action_key=key, args=args, verdict="allow",
            rules=["told"], reason="as told", principal='Agent::"deployment"', resource={}, facts={},
            facts_sha256=digest({}), policy_sha256=self.workspace.approved_sha256(), **common,
        )  # fmt: skip
        with self.workspace.db.transaction() as conn:
            ledger.commit(
                conn, wanted, key=key, attempt=1, prior={}, facts_sha256=decided.facts_sha256,
                policy_sha256=decided.policy_sha256, approval_id=None, run_id=run, decision=decided, fence=self.fence,
                at=at,
            )  # fmt: skip
            states: list[Literal["acting", "done", "verified"]] = ["acting", "done", "verified"]
            for state in states:
                change = ActionChanged(
                    decision_id=IDS.new_id(), summary=f"{kind} is {state}.", action=kind, action_key=key, state=state,
                    observed=observed or {}, **common,
                )  # fmt: skip
                ledger.mark(
                    conn, key, state, observed=change.observed, message="", decision=change, fence=self.fence, at=at
                )

    def backtest(
        self, at: datetime, run: str, *, z: float | None, verdict: str, evidence: str, needed_z: float | None = None,
        needed_difference: float | None = None, **args: Any,
    ) -> None:  # fmt: skip
        details: dict[str, Any] = {"args": {"champion": "1", **args}}
        if needed_difference is not None:
            details |= {"too_small": True, "needed_difference": needed_difference}
        if needed_z is not None:
            details["needed_z"] = needed_z
        if z is not None:
            details |= {"verdict": verdict, "n_blocks": 14, "mean_difference": z / 100, "se": 0.01, "z": z}
        self.say(
            Observed, at, topic="backtest", verdict=verdict, run_id=run, evidence_ids=[evidence], details=details,
            actor='Agent::"training"', summary=f"Paired comparison: z {z}, {verdict}.",
        )  # fmt: skip

    def run(
        self, name: str, kind: Literal["incident", "goal", "cadence"], subject: str, at: datetime, **fields: Any
    ) -> None:
        status: Literal["finished", "waiting"] = fields.pop("status", "finished")
        self.put(
            RunRow(
                id=name, model="parcels", subject_id=subject, subject_kind=kind, status=status, started_at=at, **fields
            )
        )


@contextmanager
def replayed(folder: Path, **changes: Any) -> Iterator[Replayed]:
    """A fresh workspace; nothing in it but the genesis record."""
    workspace = open_workspace(Settings(home=folder / "work"), create=True)
    try:
        yield Replayed(folder, workspace, **changes)
    finally:
        workspace.close()


def tell_story(it: Replayed) -> pl.DataFrame:
    """Everything of the story; returns the prediction records with the labels that came later."""
    it.import_rows()
    it.make_packages()
    records = it.answer()
    _service(it)
    _fault(it)
    _challengers(it)
    _people(it)
    _measured_blocks(it, records)
    return records


def _service(it: Replayed) -> None:
    it.run("first", "goal", "keep", START, outcome="first_champion")
    it.act("train_candidates", START, subject="keep", run="first", args={"seed": 42}, observed={"chosen": "linear"})
    it.act("promote", START, subject="keep", run="first", args={"version": "1", "previous": None})
    it.run("r2", "incident", "aged", START + 12 * DAY, outcome="recovered", facts={"candidate": "2"})
    way = {"version": "2", "rollout": "r"}
    it.put(
        RolloutRow(
            id="r", model="parcels", status="completed", candidate="2", stable="1", phase="completed", started_at=START
        )
    )
    at_12, at_13, at_15 = (START + n * DAY for n in (12, 13, 15))
    it.act("shift_traffic", at_12, subject="aged", run="r2", args={**way, "weights": {"1": 95, "2": 5}})
    it.act("run_ab_test", at_13, subject="aged", run="r2", args={**way, "weights": {"1": 50, "2": 50}})
    counters = {
        "1": {"n_requests": 500, "n_errors": 3, "source": "proxy/1"},
        "2": {"n_requests": 70, "n_errors": 1, "source": "proxy/2"},
    }
    it.act(
        "promote", at_15, subject="aged", run="r2", args={**way, "previous": "1"},
        observed={"samples": counters},
    )  # fmt: skip
    it.run("r3", "goal", "wish", START + 19 * DAY, outcome="rolled_back", facts={"story": "errors of version 3 rose"})
    it.act(
        "shift_traffic",
        START + 20 * DAY,
        subject="wish",
        run="r3",
        args={"version": "3", "weights": {"2": 90, "3": 10}},
    )
    it.act("rollback", START + 21 * DAY, subject="wish", run="r3", args={"version": "3", "to": "2"})


def _fault(it: Replayed) -> None:
    found, held = START + 9 * DAY, START + 9 * DAY + timedelta(hours=1)
    it.put(
        IncidentRow(
            id="broken",
            model="parcels",
            status="closed",
            cause="data_fault",
            signal="data_fault",
            opened_at=found,
            closed_at=START + 12 * DAY,
            resolution="quarantined",
            title="parcels: faulty data arrives",
            body={"text": "weight in pounds"},
        )
    )
    told: dict[str, Any] = {"cause": "data_fault", "incident_id": "broken"}
    it.say(IncidentChanged, found, **told, change="opened", summary="faulty data", title="parcels: faulty data arrives")
    it.say(IncidentChanged, START + 12 * DAY, **told, change="closed", resolution="quarantined", summary="sound again")
    it.act("quarantine_data", held, subject="broken", run="rb", args={"days": [FAULTY]})
    it.outcomes.quarantine("parcels", [FAULTY], reason="weight in pounds", key="q")


def _challengers(it: Replayed) -> None:
    it.run("c1", "cadence", "keep", START + 7 * DAY, outcome="lose")
    it.backtest(START + 7 * DAY, "c1", z=1.61, verdict="lose", evidence="e1", compare_from="2026-02-16T00:00:00+00:00")
    it.run("c2", "cadence", "keep", START + 11 * DAY, outcome="win")
    it.backtest(START + 11 * DAY, "c2", z=4.2, verdict="win", evidence="e2")
    it.put(
        IncidentRow(
            id="aged", model="parcels", status="closed", cause="stale_model", signal="challenger_better",
            opened_at=START + 11 * DAY, closed_at=START + 19 * DAY, resolution="recovered",
            title="parcels: a newer fit would serve people better", body={"text": "z 4.20"},
        ),
        SignalRow(
            id="s2", model="parcels", name="challenger_better", at=START + 11 * DAY, value=4.2, threshold=None,
            incident_id="aged", evidence_ids=["e2", "seen"],
        ),
    )  # fmt: skip
    told: dict[str, Any] = {"cause": "stale_model", "incident_id": "aged"}
    title = "parcels: a newer fit would serve people better"
    it.say(IncidentChanged, START + 11 * DAY, **told, change="opened", summary="a newer fit wins", title=title)
    it.say(IncidentChanged, START + 19 * DAY, **told, change="closed", resolution="recovered", summary="health held")
    it.backtest(START + 19 * DAY, "r3", z=-2.4, verdict="lose", evidence="e3", champion="2", candidate="3")
    it.run("c4", "cadence", "keep", START + 26 * DAY, outcome="no_verdict")
    it.backtest(START + 26 * DAY, "c4", z=None, verdict="no_verdict", evidence="e4")


def _people(it: Replayed) -> None:
    asked = START + 19 * DAY
    it.put(
        ApprovalRow(
            id="ask",
            model="parcels",
            status="used",
            action_key="k",
            action="shift_traffic",
            args={},
            roles=["approver"],
            binding_sha256="b",
            reason="gates are not met",
            asked_at=asked,
            expires_at=asked + 7 * DAY,
            answered_by="ada",
            answered_at=asked + timedelta(hours=2),
            run_id="r3",
            comment="a trial",
        )
    )
    said: dict[str, Any] = {
        "approval_id": "ask", "action": "shift_traffic", "action_key": "k", "roles": ["approver"], "run_id": "r3",
    }  # fmt: skip
    it.say(ApprovalChanged, asked, **said, change="asked", reason="gates are not met", summary="asked")
    it.say(ApprovalChanged, asked + timedelta(hours=2), **said, change="approved", reason="a trial",
           actor='User::"ada"', summary="ada approved")  # fmt: skip
    it.say(ApprovalChanged, asked + timedelta(hours=2), **said, change="used", summary="used")
    for n, rules in enumerate((["freeze"], ["freeze", "budget"])):
        it.say(
            ActionDecided, START + (13 + n) * DAY, action="promote", action_key=f"d{n}", args={}, verdict="deny",
            rules=rules, reason="", principal="", resource={}, facts={}, facts_sha256="",
            policy_sha256=it.workspace.approved_sha256(),
            summary="promote of parcels: deny",
        )  # fmt: skip


def _measured_blocks(it: Replayed, records: pl.DataFrame) -> None:
    days = records.with_columns(pl.col("event_time").dt.strftime("%Y-%m-%d").alias("day"))
    for (day,), part in sorted(days.partition_by("day", as_dict=True).items()):
        by_version = {str(v): int(n) for v, n in part.group_by("version").len().iter_rows()}
        hard = day == FAULTY
        findings = [
            {"kind": "unit", "feature": "weight", "severity": "hard", "detail": "weight in pounds"},
            {"kind": "volume", "feature": None, "severity": "warn", "detail": "fewer rows"},
        ]
        body: dict[str, Any] = {
            "profile": "", "n_rows": part.height, "n_by_version": by_version, "hard": hard,
            "findings": findings if hard else [],
        }  # fmt: skip
        champion = "1" if str(day) < (START + 15 * DAY).date().isoformat() else "2"
        it.put(
            BlockRow(
                id=f"parcels/{day}/{champion}/profile",
                model="parcels",
                topic=f"profile/{champion}",
                block=str(day),
                body=body,
            )
        )
    features = [
        {"name": "weight", "kind": "distribution", "statistic": 0.12, "p_value": 0.001, "level": "major"},
        {"name": "weight", "kind": "missing", "statistic": 0.3, "p_value": 0.9, "level": "none"},
        {"name": "lane", "kind": "distribution", "statistic": 0.02, "p_value": 0.6, "level": "none"},
    ]
    drift: dict[str, Any] = {
        "from": START.isoformat(), "until": END.isoformat(), "level": "major", "features": features,
        "moved": ["weight"], "calibrated": True,
    }  # fmt: skip
    it.put(EvidenceRow(id="moved", model="parcels", topic="drift", at=END, sha256="d", body=drift))
    it.say(Observed, END, topic="drift", verdict="major", summary="drift major in weight.")
    log.checkpoint(it.workspace.db, load_signer(it.workspace), it.workspace.second_place)
