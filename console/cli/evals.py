"""`steady eval`: run scenarios on the simulated world, check and write scenario files, compare results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from console.cli.options import Home, Json, settings_of
from console.cli.output import err, out, print_json, table
from console.interrupts import ended_by_signals
from console.workspace import open_workspace
from state.errors import InputError
from tools.datastore import replace_bytes

app = typer.Typer(help="Offline evaluation on a simulated world.", no_args_is_help=True)

EXAMPLE = """\
# A scenario: a world, what happens in it, what is true about it, and what has to come of it.
# Every field: docs/evals.md and evals/scenario.schema.json. Days count from the first live day, 0.
id: {id}
title: An upstream column is delivered in thousandths
family: drift # drift, rollout, limits, adversarial
difficulty: easy
days: 24
models:
  - name: churn # features: tenure, spend, visits (numbers), plan (a to d), mobile (yes or no)
    rows_per_day: 300
timeline: # faults; with `harmless: true` the healthy twin has them too
  - {{day: 12, inject: unit, features: [spend], magnitude: 1000, until_day: 15}}
people: # who answers what the crew asks; nobody answers a role that is not here
  - {{name: lead, roles: [approver], answer: approve}}
truth: {{cause: [data_fault]}} # diagnoses that are right; [] where no incident is right
wanted: # all of it has to hold on the last day, and from the deadline on
  - {{state: champion, version: first}}
  - {{state: traffic, champion_percent: 100}}
  - {{state: quarantined, days: [12, 13, 14], exactly: true}}
must:
  - {{effect: tell}}
must_not:
  - {{effect: traffic_to_candidate}}
  - {{effect: roll_back}}
deadline_days: 6 # from the first fault
"""


@app.command("new", epilog="Example: steady eval new my-fault.yaml")
def new(
    file: Annotated[Path, typer.Argument(help="Where to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write a commented scenario to start from."""
    if file.exists() and not force:
        raise InputError(f"{file} exists already", remedy="Name another file, or use --force")
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in file.stem.lower()).strip("-") or "scenario"
    replace_bytes(file, EXAMPLE.format(id=name).encode())
    print_json({"file": str(file), "id": name}) if json else out.print(f"wrote {file}", markup=False)


@app.command("check", epilog="Example: steady eval check my-fault.yaml")
def check(files: Annotated[list[Path], typer.Argument(help="Scenario files or folders.")], json: Json = False) -> None:
    """Check scenario files; every fault is named by line and field."""
    from evals.loading import load_all

    loaded = load_all(files)
    if json:
        print_json({"scenarios": [{"id": s.id, "file": str(path), "family": s.family} for path, s in loaded]})
    else:
        table("scenarios", ["id", "family", "title"], [[s.id, s.family, s.title] for _, s in loaded])


@app.command("run", epilog="Example: steady eval run --family rollout --seeds 2 --html suite.html")
def run(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Scenario files or folders; default: the shipped suite.")
    ] = None,
    suite: Annotated[bool, typer.Option("--suite", help="The shipped suite, beside any files.")] = False,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="The first so many seeds of each; default: all.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = os.cpu_count() or 1,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    crash: Annotated[
        bool,
        typer.Option("--crash", help="First seed only, and again with a kill at each effect and ledger state; slow."),
    ] = False,
    mlflow: Annotated[
        str | None, typer.Option(help="Log one MLflow run a scenario: a tracking URI, or a folder for an own store.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="rules: no language model; cassette: recorded answers; live: a provider's model.")
    ] = "rules",
    cassette: Annotated[Path | None, typer.Option(help="Recorded answers, for --mode cassette.")] = None,
    model: Annotated[str | None, typer.Option(help="PROVIDER:NAME, for --mode live.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the answers of --mode live here.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens in.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens out.")] = None,
    json: Json = False,
) -> None:
    """Run scenarios with their healthy twins and grade them; exit code 1 where any fails."""
    from evals.crash import CrashReport, check_crashes
    from evals.language import Prices, usage, write_cassette
    from evals.loading import SCENARIOS, load_all
    from evals.report import as_json, verdicts, write_page
    from evals.run import run_all

    _check_family(family)
    wanted = [*(files or []), *([SCENARIOS] if suite or not files else [])]
    scenarios = [s for _, s in load_all(wanted) if family in (None, s.family)]
    if not scenarios:
        raise InputError(f"no scenario of family {family!r}", remedy="Leave --family out to see what there is")
    if crash and mode != "rules":
        raise InputError("--crash plays by the rules alone", remedy="Leave --mode out")
    source = _source(mode, cassette=cassette, model=model, record=record, prices=(price_in, price_out))
    skipped = [s.id for s in scenarios if s.needs is not None and source is None]
    if skipped:
        err.print(f"skipped {', '.join(skipped)}: --mode cassette or live plays goals in free words", soft_wrap=True)
    scenarios = [s for s in scenarios if s.id not in skipped]
    if not scenarios:
        raise InputError("every scenario needs a language model", remedy="Use --mode cassette or --mode live")
    # Before the runs: they may take an hour, and a report that cannot be written would lose them.
    if html is not None:
        _check_writable(html)
    store = None
    if mlflow is not None:
        from tools.eval_tracking import open_store  # imports MLflow

        store = open_store(mlflow)
    crashes: list[CrashReport] = []
    with ended_by_signals():
        results = run_all(scenarios, seeds=1 if crash else seeds, n_jobs=jobs, told=_tell, source=source)
        if crash:
            results, crashes = check_crashes(scenarios, results, n_jobs=jobs, told=_say)
    if record is not None:
        err.print(f"wrote {write_cassette(record, results)} answers to {record}", markup=False, soft_wrap=True)
    asked = usage(results, Prices(input_usd=price_in, output_usd=price_out)) if source is not None else None
    found = verdicts(results)
    if html is not None:
        write_page(found, html, crashes=crashes)
    if store is not None:
        from evals.tracked import track

        track(found, store)
    if json:
        print_json(as_json(found, crashes=crashes, mode=mode, language=asked, skipped=skipped))
    else:
        _print(found)
        if asked is not None:
            _print_usage(asked)
    if not all(verdict.passed for verdict in found):
        raise typer.Exit(1)


@app.command("from-incident", epilog="Example: steady eval from-incident ID --to incident.yaml")
def from_incident(
    incident: Annotated[str, typer.Argument(help="Id of a recorded incident: `steady incidents --json`.")],
    to: Annotated[Path | None, typer.Option(help="Write here; default: print.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json: Json = False,
    home: Home = None,
) -> None:
    """Turn an incident of the workspace into a scenario; its comments say what is recorded and what is assumed."""
    from evals.from_incident import scenario_from
    from evals.loading import load_scenario

    if to is not None and to.exists() and not force:
        raise InputError(f"{to} exists already", remedy="Name another file, or use --force")
    workspace = open_workspace(settings_of(home), create=False)
    try:
        with workspace.db.snapshot() as conn:
            text = scenario_from(conn, incident)
    finally:
        workspace.close()
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "scenario.yaml"
        draft.write_text(text, encoding="utf-8")
        scenario = load_scenario(draft)
    if to is not None:
        replace_bytes(to, text.encode())
    if json:
        print_json({"id": scenario.id, "file": str(to) if to is not None else None, "text": text})
    elif to is not None:
        out.print(f"wrote {to}", markup=False, soft_wrap=True)
    else:
        out.print(text, markup=False, soft_wrap=True, end="", highlight=False)


@app.command("compare", epilog="Example: steady eval compare before.json after.json")
def compare_(
    before: Annotated[Path, typer.Argument(help="Results of `steady eval run --json`.")],
    after: Annotated[Path, typer.Argument(help="Later results.")],
    json: Json = False,
) -> None:
    """What differs between two results; exit code 1 where a scenario passed before and does not now."""
    from evals.report import compare

    changes = compare(before, after)
    if json:
        print_json({"changes": [{"id": c.id, "before": c.before, "after": c.after, "worse": c.worse} for c in changes]})
    else:
        table("changes", ["scenario", "before", "after"], [[c.id, c.before, c.after] for c in changes])
    if any(change.worse for change in changes):
        raise typer.Exit(1)


def _check_family(name: str | None) -> None:
    from evals.scenario import Family

    if name is not None and name not in get_args(Family):
        raise InputError(f"--family {name!r} is not known", remedy=f"Use one of {', '.join(get_args(Family))}")


def _source(
    mode: str,
    *,
    cassette: Path | None,
    model: str | None,
    record: Path | None,
    prices: tuple[float | None, float | None],
) -> Any:
    """Where answers come from in this mode; None by the rules. Options of another mode are refused, never dropped."""
    from evals.language import Cassette, LiveModel
    from tools.chat_models import open_chat_model

    given = {
        "--cassette": cassette,
        "--model": model,
        "--record": record,
        "--price-in": prices[0],
        "--price-out": prices[1],
    }
    fitting = {"rules": (), "cassette": ("--cassette",), "live": ("--model", "--record", "--price-in", "--price-out")}
    if mode not in fitting:
        raise InputError(f"--mode {mode!r} is not known", remedy=f"Use one of {', '.join(fitting)}")
    for name, value in given.items():
        if value is not None and name not in fitting[mode]:
            raise InputError(f"{name} means nothing with --mode {mode}", remedy="Leave it out, or change the mode")
    if mode == "rules":
        return None
    if mode == "cassette":
        if cassette is None:
            raise InputError("--mode cassette names no recording", remedy="Add --cassette FILE")
        return Cassette.read(cassette)
    if model is None:
        raise InputError("--mode live names no model", remedy="Add --model PROVIDER:NAME")
    if record is not None and record.exists():
        raise InputError(f"{record} exists already", remedy="Name another file")
    open_chat_model(model)  # what is missing is said before anything is played
    return LiveModel(name=model)


def _print_usage(asked: dict[str, Any]) -> None:
    told = {name: "unknown" if asked[name] is None else asked[name] for name in ("input_tokens", "output_tokens")}
    cost = "unknown" if asked["cost_usd"] is None else f"{asked['cost_usd']:.4f} US dollars"
    out.print(
        f"language model {', '.join(asked['models']) or 'not asked'}: {asked['requests']} requests, "
        f"{told['input_tokens']} tokens in, {told['output_tokens']} out, cost {cost}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _check_writable(file: Path) -> None:
    folder = file.absolute().parent
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise InputError(f"--html {file} cannot be written", remedy="Name a file in a folder that exists")


def _tell(result: Any, n_ended: int, n_runs: int) -> None:
    """One line of progress a run, with the first reason where it failed."""
    reason = result.error or next((f"{gate}: {why}" for gate, why in result.why.items()), "")
    state = "passed" if result.passed else "error " if result.error else "failed"
    _say(f"{n_ended} of {n_runs}  {state}  {result.id} seed {result.seed}  {reason}".rstrip())


def _say(line: str) -> None:
    """A line on standard error, so that standard output stays one document."""
    err.print(line, markup=False, soft_wrap=True)


def _print(found: Sequence[Any]) -> None:
    rows = [
        [v.id, v.family, "passed" if v.passed else "error" if v.error else "failed", _days(v.ttm_min), v.actions,
         v.twin_false_actions, "; ".join(f"{gate}: {why}" for gate, why in list(v.why.items())[:2]) or v.error]
        for v in found
    ]  # fmt: skip
    table("scenarios", ["scenario", "family", "verdict", "mitigated, days", "actions", "false actions", "why"], rows)
    from evals.report import families

    by_family = families(found)
    shown = [
        [name, f"{row['passed']} of {row['scenarios']}", f"{row['runs_passed']} of {row['runs']}", _share(row),
         row["twin_false_actions"], row["forbidden"], row["errors"]]
        for name, row in by_family.items()
        if isinstance(row, dict)
    ]  # fmt: skip
    columns = ["family", "passed with every seed", "runs", "success (95 %)", "false actions", "forbidden", "errors"]
    table("families", columns, shown)
    from evals.summary import summarise, summary_lines

    table("suite", ["figure", "value"], [list(line) for line in summary_lines(summarise(found))])


def _share(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['success']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _days(minutes: float | None) -> str:
    return "-" if minutes is None else f"{minutes / 1440:.0f}"
