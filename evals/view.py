"""The state that a scenario wants, looked up in the world and in the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.scenario import (
    ChampionIs,
    IncidentIs,
    PersonKnows,
    PlatformRefuses,
    QuarantineIs,
    RunHolds,
    TrafficIs,
    Wanted,
)
from evals.scene import Scene
from evals.world.release import SETUP
from orchestrator.heed import ALARM
from state import store
from state.rows import ApprovalRow, DiagnosisRow, IncidentRow, RolloutRow, SwitchRow


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The scene at one moment."""

    scene: Scene
    incidents: Sequence[IncidentRow]
    diagnoses: Sequence[DiagnosisRow]
    questions: Sequence[ApprovalRow]
    rollouts: Sequence[RolloutRow]
    policy_alarm: bool
    """The loop says that its policy files are not the approved set."""

    @classmethod
    def of(cls, scene: Scene) -> View:
        with scene.crew.db.transaction() as conn:
            alarm = store.get(conn, SwitchRow, ALARM)
            return cls(
                scene=scene,
                incidents=store.select(conn, IncidentRow),
                diagnoses=store.select(conn, DiagnosisRow),
                questions=[row for row in store.select(conn, ApprovalRow) if row.asked_at > scene.opened_at],
                rollouts=store.select(conn, RolloutRow),
                policy_alarm=bool(alarm and alarm.body.get("text")),
            )

    def unmet(self, wanted: Sequence[Wanted]) -> list[str]:
        """The parts that do not hold, each with what is there instead."""
        return [f"{_told(part)}: {why}" for part in wanted if (why := self._why_not(part))]

    def _why_not(self, wanted: Wanted) -> str:
        match wanted:
            case ChampionIs():
                return self._each(wanted.model, lambda model: self._champion(model, wanted))
            case TrafficIs():
                return self._each(wanted.model, lambda model: self._traffic(model, wanted))
            case IncidentIs():
                return self._incident(wanted)
            case QuarantineIs():
                return self._each(wanted.model, lambda model: self._quarantine(model, wanted))
            case PersonKnows():
                return self._known(wanted)
            case RunHolds():
                return self._each(wanted.model, self._holds)
            case PlatformRefuses():
                return "" if self.policy_alarm else "the crew still trusts its policy"

    def _each(self, model: str | None, why_not: Callable[[str], str]) -> str:
        models = [model] if model is not None else self.scene.models
        return "; ".join(why for name in models if (why := why_not(name)))

    def _champion(self, model: str, wanted: ChampionIs) -> str:
        state = self.scene.world.model(model)
        champion = state.aliases.get("champion")
        found = next((v for v in state.versions if v.version == champion), None)
        by_hand = found is not None and (found.key or "").startswith(SETUP)
        kind = "none" if found is None else "first" if champion == "1" else "released" if by_hand else "newer"
        # What a team released is newer than the first one as well.
        holds = kind == wanted.version or (wanted.version == "newer" and kind == "released")
        return "" if holds else f"the champion of {model} is version {champion} ({kind})"

    def _traffic(self, model: str, wanted: TrafficIs) -> str:
        state = self.scene.world.model(model)
        champion = state.aliases.get("champion", "")
        if state.route is None:
            return f"{model} has no route"
        documented, applied = state.route.weights.get(champion, 0), state.route.applied.get(champion, 0)
        if documented == applied == wanted.champion_percent:
            return ""
        return f"the champion of {model} has {documented} % in the route and {applied} % in the data plane"

    def _incident(self, wanted: IncidentIs) -> str:
        found = [
            row for row in self.incidents
            if wanted.model == row.model or (wanted.model is None and not row.body.get("part_of"))
        ]  # fmt: skip
        fitting = [
            row for row in found
            if wanted.status in ("either", row.status)
            and (not wanted.resolution or row.resolution in wanted.resolution)
        ]  # fmt: skip
        if (len(fitting) == wanted.count) if wanted.count is not None else fitting:
            return ""
        there = ", ".join(f"{row.cause} {row.status} {row.resolution or ''}".strip() for row in found)
        return f"incidents: {there or 'none'}"

    def _quarantine(self, model: str, wanted: QuarantineIs) -> str:
        days = {self.scene.date_of(day).isoformat() for day in wanted.days}
        found = set(self.scene.world.model(model).quarantined)
        if found == days if wanted.exactly else days <= found:
            return ""
        return f"quarantined of {model}: {', '.join(sorted(found)) or 'nothing'}"

    def _known(self, wanted: PersonKnows) -> str:
        if wanted.state == "asked":
            texts = [f"{q.model} {q.action} {q.reason}" for q in self.questions]
        else:
            texts = [f"{message.title} {message.text}" for message in self.scene.world.state.messages]
        fitting = [
            text for text in texts
            if (wanted.model is None or wanted.model in text)
            and (not wanted.words or any(word.lower() in text.lower() for word in wanted.words))
        ]  # fmt: skip
        return "" if fitting else f"{len(texts)} were {wanted.state}, none of them this"

    def _holds(self, model: str) -> str:
        running = [row for row in self.rollouts if row.model == model and row.status == "running"]
        return "" if running else f"no rollout of {model} is waiting"


def _told(wanted: Wanted) -> str:
    fields = {
        name: value for name, value in wanted.model_dump(mode="json").items() if value not in (None, [], "either")
    }
    return " ".join(f"{name}={value}" if name != "state" else str(value) for name, value in fields.items())
