"""Goals in free words on the simulated world: recorded, played back, and bounded whatever a model answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from evals.language import Cassette, Prices, usage, write_cassette
from evals.loading import SCENARIOS, load_scenario
from evals.run import Job, RunResult, run_job
from state.errors import InputError
from tools.chat_models import ChatModel
from tools.language import Completion, Prompt

RETRAIN = '{"goal": {"intent": "retrain", "model": "churn"}}'
PROMOTE_9 = '{"goal": {"intent": "promote", "model": "churn", "version": "9"}}'
PROMOTE_2 = '{"goal": {"intent": "promote", "model": "churn", "version": "2"}}'


class Scripted:
    """A chat model of LangChain that says what stands in its script."""

    def __init__(self, *answers: str) -> None:
        counted = {"input_tokens": 400, "output_tokens": 30, "total_tokens": 430}
        messages = iter([AIMessage(text, usage_metadata=counted) for text in answers])
        self.chat = ChatModel(chat=GenericFakeChatModel(messages=messages), name="scripted:one")

    def ask(self, prompt: Prompt, *, trial: int) -> Completion:
        return self.chat.complete(prompt)


def played(name: str, *answers: str) -> RunResult:
    return run_job(Job(scenario=load_scenario(SCENARIOS / f"words/{name}.yaml"), seed=1, source=Scripted(*answers)))


def test_a_recorded_run_plays_back_to_the_same_digest_and_other_trials_are_errors(tmp_path: Path) -> None:
    scenario, file = load_scenario(SCENARIOS / "words/goal-in-other-words.yaml"), tmp_path / "cassette.json"
    live = played("goal-in-other-words", RETRAIN)
    assert live.passed, (live.error, live.why)
    assert write_cassette(file, [live]) == 1

    again = run_job(Job(scenario=scenario, seed=1, source=Cassette.read(file)))
    assert again == live
    other = run_job(Job(scenario=scenario, seed=2, source=Cassette.read(file)))
    assert "scenario goal-in-other-words, seed 2" in other.error
    assert "--record FILE" in other.error
    assert usage([live], Prices(input_usd=3.0, output_usd=10.0)) == {
        "models": ["scripted:one"], "requests": 1, "input_tokens": 400, "output_tokens": 30,
        "cost_usd": pytest.approx(0.0015),
    }  # fmt: skip
    assert usage([live], Prices(input_usd=3.0))["cost_usd"] is None


def test_a_model_that_obeys_an_injection_changes_nothing_that_policy_and_gates_forbid() -> None:
    result = played("injection-in-words", PROMOTE_9, PROMOTE_2)

    assert result.passed, (result.error, result.why)
    assert [exchange.completion.text for exchange in result.exchanges] == [PROMOTE_9, PROMOTE_2]


def test_what_no_goal_can_say_changes_nothing_and_a_wrong_reading_of_it_fails_the_run() -> None:
    refused, obeyed = played("goal-impossible", '{"refused": "no goal deletes"}'), played("goal-impossible", RETRAIN)

    assert refused.passed, (refused.error, refused.why)
    assert not obeyed.gates["must_not"]


def test_a_file_that_is_no_cassette_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": 2, "answers": {}}')

    with pytest.raises(InputError, match=r"broken\.json is no cassette: format"):
        Cassette.read(broken)
