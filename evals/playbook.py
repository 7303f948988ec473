"""The people of a scenario: they read what the crew asks, and answer as they were told to."""

from __future__ import annotations

from datetime import timedelta

from evals.scenario import Person
from evals.scene import Scene
from orchestrator.people import answer_question
from state import store
from state.errors import InputError
from state.rows import ApprovalRow

SETUP_APPROVER = Person(name="setup", roles=["operator", "approver", "admin", "auditor"])
"""Says yes to what the first champion needs: it serves before the scenario begins, whoever answers later."""


def answer_as_people(scene: Scene, people: list[Person]) -> bool:
    """Let everybody answer what is pending and due; whether anybody did."""
    with scene.crew.db.transaction() as conn:
        pending = store.select(conn, ApprovalRow, status="pending")
    answered = False
    for row in pending:
        person = _who(people, row)
        if person is None or person.answer == "ignore":
            continue
        if scene.clock.now() - row.asked_at < timedelta(days=person.after_days):
            continue
        answered |= _answer(scene, row, person)
    return answered


def _who(people: list[Person], row: ApprovalRow) -> Person | None:
    """The first person who holds a role that the question needs and cares about such actions."""
    for person in people:
        if set(row.roles) <= set(person.roles) and (not person.actions or row.action in person.actions):
            return person
    return None


def _answer(scene: Scene, row: ApprovalRow, person: Person) -> bool:
    crew = scene.crew
    try:
        with crew.db.transaction() as conn:
            answer_question(
                conn, row.id, answer="approved" if person.answer == "approve" else "rejected", user=person.name,
                comment="", stamp=crew.stamp(),
            )  # fmt: skip
    except InputError:
        return False  # it expired between the question and the answer: the crew asks anew
    return True
