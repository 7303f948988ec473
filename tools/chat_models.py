"""Language models through LangChain. Imports its core, which takes a second: import this module only where one is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage

from state.errors import InputError, ToolUnavailable
from tools.language import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatModel:
    """Any chat model of LangChain."""

    chat: BaseChatModel
    name: str

    def complete(self, prompt: Prompt) -> Completion:
        messages = [SystemMessage(prompt.instructions), HumanMessage(prompt.material)]
        try:
            answer = self.chat.invoke(messages)
        except Exception as exc:  # every provider has errors of its own
            # The class alone: a provider's message may repeat the request with its key.
            raise ToolUnavailable(f"language model {self.name}: {type(exc).__name__}") from exc
        usage = answer.usage_metadata
        return Completion(
            text=str(answer.text),
            model=str(answer.response_metadata.get("model_name") or self.name),
            input_tokens=usage["input_tokens"] if usage else None,
            output_tokens=usage["output_tokens"] if usage else None,
        )


def open_chat_model(name: str) -> ChatModel:
    """The model `PROVIDER:NAME`, as LangChain's `init_chat_model` names it; the provider's package finds its own key.

    Raises:
        InputError: the name has no provider, or what it needs is not installed or not configured.
    """
    provider, _, rest = name.partition(":")
    if not provider or not rest:
        raise InputError(f"language model {name!r} names no provider", remedy="Write PROVIDER:NAME")
    try:
        make = importlib.import_module("langchain.chat_models").init_chat_model
        return ChatModel(chat=make(name), name=name)
    except ImportError as exc:
        raise InputError(
            f"language model {name!r} needs {exc.name or f'the package of {provider}'}, which is not installed",
            remedy=f"Install the extra `llm` and the LangChain package of {provider}",
        ) from exc
    except Exception as exc:  # every provider has errors of its own
        raise InputError(
            f"language model {name!r} cannot be opened: {type(exc).__name__}",
            remedy=f"See LangChain's page of {provider} for its names of models and of the variable with its key",
        ) from exc
