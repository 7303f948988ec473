"""A language model as we ask it: a prompt in; text, tokens and the model's name out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from state.canonical import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    instructions: str
    """What we ask of the model; holds no word of anybody else."""
    material: str
    """What it is to read: data."""

    @property
    def sha256(self) -> str:
        return digest([self.instructions, self.material])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    text: str
    model: str
    """As the provider names it; as it was asked for where the provider names none."""
    input_tokens: int | None = None
    """None where the provider does not count; never zero for unknown."""
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question to a language model and its answer, as records keep it."""

    prompt_sha256: str
    completion: Completion


class LanguageModel(Protocol):
    def complete(self, prompt: Prompt) -> Completion:
        """The model's answer.

        Raises:
            ToolUnavailable: no answer; whoever asks goes on without one.
        """
