"""The policy files, looked at in every tick: while they are not the approved set, people know and risky work stands still."""

from __future__ import annotations

from orchestrator.crew import SYSTEM, Crew, tell
from orchestrator.people import let_denied_ask_again
from policies.current import CurrentPolicy
from state import log, store
from state.canonical import sha256_hex
from state.decisions import Observed
from state.rows import SwitchRow
from state.store import Connection

ALARM = "policy_alarm"


def heed_policy(crew: Crew, conn: Connection) -> None:
    """Compare the files with the set that the log approves, and record when they part and when they agree again."""
    policy = crew.policy
    if not isinstance(policy, CurrentPolicy):
        return
    approved = log.approved_policy(conn)
    if approved is None:
        return
    row = store.get(conn, SwitchRow, ALARM)
    before = policy.sha256
    policy.look(approved)
    said = row.body.get("text") if row is not None else None
    if policy.changed == said and policy.sha256 == before:
        return
    store.put(conn, SwitchRow(id=ALARM, body={"text": policy.changed}), fence=None)
    if policy.changed is not None:
        _alarm(crew, conn, policy.changed)
    else:
        _sound(crew, conn, policy.sha256)


def _alarm(crew: Crew, conn: Connection, problem: str) -> None:
    text = f"{problem}. Until then nothing is done but a rollback to the last healthy champion, messages and reading."
    log.append(
        conn,
        Observed(**crew.stamp(), actor=SYSTEM, topic="operation", verdict="policy_changed",
                 summary=text[0].upper() + text[1:]),
    )  # fmt: skip
    key = f"policy/{sha256_hex(problem.encode())[:16]}/{crew.clock.now().isoformat()}"
    tell(crew, conn, key=key, title="the policy files are not the approved set", text=text)
    crew.say("orchestrator", problem)


def _sound(crew: Crew, conn: Connection, sha256: str) -> None:
    log.append(
        conn,
        Observed(**crew.stamp(), actor=SYSTEM, topic="operation", verdict="policy_approved",
                 summary=f"The policy files are the approved set {sha256[:12]}; work goes on under it."),
    )  # fmt: skip
    let_denied_ask_again(conn)
    crew.say("orchestrator", f"the policy files are the approved set {sha256[:12]}")
