"""Commands of `steady`. Each parses, calls a service, prints; no logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from console import services
from console.cli import audit, evals, policy, run
from console.cli.backtest import backtest
from console.cli.options import Home, Json, settings_of
from console.cli.output import out, print_json, table
from console.specs import load_spec
from console.workspace import Workspace, open_workspace
from orchestrator.goals.reading import KEYS, NOT_YET, SENTENCES
from state.errors import InputError
from state.spec import Metric

app = typer.Typer(
    name="steady",
    help="Keeps machine-learning models healthy in production, within policy, with a record that anybody can verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
spec_app = typer.Typer(help="Model specs.", no_args_is_help=True)
app.add_typer(spec_app, name="spec")
app.add_typer(audit.app, name="audit")
app.add_typer(policy.app, name="policy")
app.add_typer(evals.app, name="eval")
app.command("up")(run.up)
app.command("demo")(run.demo)
app.command("backtest")(backtest)


def _metric(name: str | None) -> Metric | None:
    if name is None or name in get_args(Metric):
        return cast("Metric | None", name)
    raise InputError(f"--metric {name!r} is not known", remedy=f"Use one of {', '.join(get_args(Metric))}")


def _opened(home: Path | None) -> Workspace:
    return open_workspace(settings_of(home), create=False)


@app.command(epilog="Example: steady init loans.parquet --label defaulted")
def init(
    file: Annotated[Path, typer.Argument(help="A parquet or CSV file.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Where to write; default: <model>.yaml here.")] = None,
    label: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event time.")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric that the model is held to.")] = None,
    entity: Annotated[list[str] | None, typer.Option(help="Column(s) that name the entity; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model; default: from the file's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing spec.")] = False,
    json: Json = False,
) -> None:
    """Read a data file and write a commented model spec for it."""
    from console.init import init_spec
    from tools.datastore import RESERVED_COLUMNS

    result = init_spec(
        file, out=out_file, label=label, time=time, metric=_metric(metric), entity=entity, model=model, overwrite=force
    )  # fmt: skip
    if json:
        print_json({"spec": str(result.spec.path)})
    else:
        out.print(f"wrote {result.spec.path}; look it over, then: steady up {result.spec.path}", markup=False)
        for column, why in result.inspection.left_out:
            if column.name in RESERVED_COLUMNS:  # it may well be a feature, and only its name is in the way
                out.print(f"  left out: {column.name} ({why})", markup=False)


@spec_app.command("check", epilog="Example: steady spec check churn.yaml")
def spec_check(file: Annotated[Path, typer.Argument(help="A model spec.")], json: Json = False) -> None:
    """Check a model spec; every fault is named with line, field and remedy."""
    loaded = load_spec(file)
    if json:
        print_json({"ok": True, "model": loaded.spec.model, "sha256": loaded.sha256, "notes": list(loaded.notes)})
        return
    out.print(f"{file}: ok ({loaded.spec.model}, {loaded.spec.task})", markup=False)
    for note in loaded.notes:
        out.print(f"  note: {note}", markup=False)


_GOAL_HELP = "\n\n".join(
    [
        "Say what should be true: one of these sentences, or the typed goal as JSON.",
        "\b\n" + "\n".join(f"  {sentence}" for sentence in SENTENCES),
        "\b\nKeys of the typed goal:\n" + "\n".join(f"  {key}: {values}" for key, values in KEYS.items()),
        f"Read and refused, for nothing acts upon them yet: {', '.join(NOT_YET)}.",
    ]
)


@app.command(help=_GOAL_HELP, epilog="""Example: steady goal "keep flights's roc_auc above 0.65" """)
def goal(
    text: Annotated[str, typer.Argument(help="A sentence, or the typed goal as JSON.")],
    json: Json = False,
    home: Home = None,
) -> None:
    """Say what should be true."""
    workspace = _opened(home)
    try:
        row = services.submit_goal(workspace, text)
        answer: dict[str, Any] = {"goal_id": row.id, "status": row.status, "goal": row.goal}
        if row.goal["intent"] == "report":
            answer["report"] = services.status(workspace)
        stopped = services.halted(workspace)
    finally:
        workspace.close()
    if json:
        print_json(answer)
        return
    out.print(f"goal {row.id} is {row.status}: {row.text}", markup=False)
    if stopped and row.status == "active":
        out.print("the kill switch is on: nothing is done for it before `steady halt --release`", markup=False)


@app.command(epilog="Example: steady status --json")
def status(json: Json = False, home: Home = None) -> None:
    """Models, champions, traffic, what every run waits for, and questions to answer."""
    workspace = _opened(home)
    try:
        state = services.status(workspace)
    finally:
        workspace.close()
    if json:
        print_json(state)
        return
    out.print(f"domain time {state['domain_time']}{'   HALTED' if state['halted'] else ''}", markup=False)
    if state["policy_problem"]:
        out.print(f"POLICY: {state['policy_problem']}", markup=False, soft_wrap=True)
    rows = [
        [m["model"], m["status"], m["champion"], _weights(m["weights"]), len(m["open_incidents"]),
         "; ".join(r["waits_for"] for r in m["runs"] if r["waits_for"])]
        for m in state["models"]
    ]  # fmt: skip
    table("models", ["model", "status", "champion", "traffic %", "open incidents", "waits for"], rows)
    asked = [[a["id"], a["model"], a["action"], ", ".join(a["roles"]), a["reason"]] for a in state["approvals"]]
    table("approvals to answer", ["id", "model", "action", "role", "why"], asked)


def _weights(weights: dict[str, int] | None) -> str:
    return " ".join(f"v{version}:{percent}" for version, percent in (weights or {}).items())


@app.command(epilog="Example: steady incidents --model flights")
def incidents(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None, json: Json = False, home: Home = None
) -> None:
    """Every incident: cause, evidence, actions, resolution."""
    workspace = _opened(home)
    try:
        found = services.incidents(workspace, model=model)
    finally:
        workspace.close()
    if json:
        print_json({"incidents": found})
        return
    rows = [
        [i["opened_at"][:10], (i["closed_at"] or "")[:10], i["title"], i["cause"], i["resolution"] or i["status"],
         " ".join(f"{a['kind']}:{a['state']}" for a in i["actions"])]
        for i in found
    ]  # fmt: skip
    table("incidents", ["opened", "closed", "what", "cause", "resolution", "actions"], rows)


@app.command(epilog="Example: steady approve 3f2a9c1e --comment 'seen the metrics'")
def approve(
    approval: Annotated[str, typer.Argument(help="Id of the question, or its last characters.")],
    comment: Annotated[str, typer.Option(help="Why; kept in the record.")] = "",
    json: Json = False,
    home: Home = None,
) -> None:
    """Approve one pending action; the approval is good for exactly what was shown."""
    _answer(approval, "approved", comment, json, home)


@app.command(epilog="Example: steady reject 3f2a9c1e --comment 'not before the holidays'")
def reject(
    approval: Annotated[str, typer.Argument(help="Id of the question, or its last characters.")],
    comment: Annotated[str, typer.Option(help="Why; kept in the record.")] = "",
    json: Json = False,
    home: Home = None,
) -> None:
    """Reject one pending action."""
    _answer(approval, "rejected", comment, json, home)


def _answer(approval: str, answer: Any, comment: str, json: bool, home: Path | None) -> None:
    workspace = _opened(home)
    try:
        row = services.answer_approval(workspace, approval, answer, comment)
        stopped = services.halted(workspace)
    finally:
        workspace.close()
    if json:
        print_json({"approval_id": row.id, "status": row.status, "action": row.action, "model": row.model})
    else:
        out.print(f"{row.action} of {row.model}: {row.status} by {row.answered_by}", markup=False)
        if stopped and answer == "approved":
            out.print("the kill switch is on: it is asked anew after `steady halt --release`", markup=False)


@app.command(epilog="Example: steady halt --reason 'upstream outage'")
def halt(
    release: Annotated[bool, typer.Option("--release", help="Release the kill switch.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the record.")] = "",
    json: Json = False,
    home: Home = None,
) -> None:
    """Kill switch: stop every action but rollback to the champion, telling people and reading."""
    workspace = _opened(home)
    try:
        services.set_halt(workspace, not release, reason)
    finally:
        workspace.close()
    if json:
        print_json({"halted": not release})
    else:
        out.print("released" if release else "halted")


@app.command(epilog="Example: steady hold flights --reason 'campaign week'")
def hold(
    model: Annotated[str, typer.Argument(help="The model.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the record.")] = "",
    json: Json = False,
    home: Home = None,
) -> None:
    """Hold one model: nothing about it changes but a rollback."""
    _hold(model, True, reason, json, home)


@app.command(epilog="Example: steady resume flights")
def resume(
    model: Annotated[str, typer.Argument(help="The model.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the record.")] = "",
    json: Json = False,
    home: Home = None,
) -> None:
    """Let a held model go on."""
    _hold(model, False, reason, json, home)


def _hold(model: str, held: bool, reason: str, json: bool, home: Path | None) -> None:
    workspace = _opened(home)
    try:
        name = services.set_hold(workspace, model, held, reason)
        halted = services.halted(workspace)
    finally:
        workspace.close()
    if json:
        print_json({"model": name, "held": held})
    else:
        out.print(f"{name} is {'held' if held else 'free to change'}", markup=False)
        if halted and not held:
            out.print("the kill switch is on all the same; `steady halt --release` releases it", markup=False)
