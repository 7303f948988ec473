"""Where a run's language model comes from: nowhere, a cassette of recorded answers, or a provider.

A request is one prompt in one trial; the trial is the seed. Within a trial the same prompt has the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from state.canonical import digest
from state.errors import InputError, ToolUnavailable
from tools.chat_models import open_chat_model
from tools.datastore import replace_bytes
from tools.language import Completion, Exchange, Prompt


class HarnessSilent(Exception):
    """A scenario needs an answer that the harness cannot give: no verdict about the crew."""


class Source(Protocol):
    def ask(self, prompt: Prompt, *, trial: int) -> Completion:
        """The answer to `prompt` in a trial.

        Raises:
            HarnessSilent: there is none.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveModel:
    """A provider's model. Only its name travels to another process."""

    name: str

    def ask(self, prompt: Prompt, *, trial: int) -> Completion:  # noqa: ARG002  # each trial draws its own answer
        try:
            return open_chat_model(self.name).complete(prompt)
        except ToolUnavailable as exc:
            raise HarnessSilent(f"{exc}; repeat the run") from exc


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    model: str
    input_tokens: int | None
    output_tokens: int | None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    answers: dict[str, _Entry]
    """By digest of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cassette:
    path: Path
    answers: dict[str, Completion]

    @classmethod
    def read(cls, path: Path) -> Cassette:
        """Raises `InputError` where the file cannot be read or is no cassette."""
        remedy = "Record one with `steady eval run --mode live --model PROVIDER:NAME --record FILE`"
        try:
            found = _File.model_validate_json(path.read_bytes())
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror}", remedy=remedy) from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise InputError(f"{path} is no cassette: {where}: {first['msg']}", remedy=remedy) from exc
        return cls(path=path, answers={key: Completion(**entry.model_dump()) for key, entry in found.answers.items()})

    def ask(self, prompt: Prompt, *, trial: int) -> Completion:
        try:
            return self.answers[request_digest(prompt.sha256, trial)]
        except KeyError as exc:
            raise HarnessSilent(
                f"{self.path} has no answer to this request; record it again with --mode live --record FILE"
            ) from exc


class Asked(Protocol):
    """A run, as far as its language model goes."""

    @property
    def seed(self) -> int: ...

    @property
    def exchanges(self) -> Sequence[Exchange]: ...


def request_digest(prompt_sha256: str, trial: int) -> str:
    return digest([prompt_sha256, trial])


def write_cassette(path: Path, results: Sequence[Asked]) -> int:
    """Write what was asked and answered in the runs; return the number of answers."""
    answers = {
        request_digest(exchange.prompt_sha256, run.seed): _Entry(
            text=exchange.completion.text, model=exchange.completion.model,
            input_tokens=exchange.completion.input_tokens, output_tokens=exchange.completion.output_tokens,
        )
        for run in results for exchange in run.exchanges
    }  # fmt: skip
    ordered = _File(answers=dict(sorted(answers.items())))
    replace_bytes(path, ordered.model_dump_json(indent=1).encode() + b"\n")
    return len(answers)


@dataclass(slots=True, kw_only=True)
class Trial:
    """The language model of one run, which keeps what it was asked."""

    source: Source
    scenario: str
    seed: int
    asked: dict[str, Exchange] = field(default_factory=dict)
    """By digest of the prompt, in order."""

    def complete(self, prompt: Prompt) -> Completion:
        key = prompt.sha256
        if key not in self.asked:
            try:
                completion = self.source.ask(prompt, trial=self.seed)
            except HarnessSilent as exc:
                raise HarnessSilent(f"scenario {self.scenario}, seed {self.seed}: {exc}") from exc
            self.asked[key] = Exchange(prompt_sha256=key, completion=completion)
        return self.asked[key].completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars per million tokens; None is not known."""

    input_usd: float | None = None
    output_usd: float | None = None


def usage(results: Sequence[Asked], prices: Prices) -> dict[str, JsonValue]:
    """What the runs asked of a language model. A number that nobody knows is null, never zero."""
    asked = [exchange.completion for run in results for exchange in run.exchanges]
    tokens_in, tokens_out = _sum([c.input_tokens for c in asked]), _sum([c.output_tokens for c in asked])
    costs = [_cost(tokens_in, prices.input_usd), _cost(tokens_out, prices.output_usd)]
    known = [cost for cost in costs if cost is not None]
    return {
        "models": list[JsonValue](sorted({completion.model for completion in asked})),
        "requests": len(asked),
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "cost_usd": sum(known) if len(known) == len(costs) else None,
    }


def _cost(n_tokens: int | None, usd: float | None) -> float | None:
    return None if n_tokens is None or usd is None else n_tokens * usd / 1e6


def _sum(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)
