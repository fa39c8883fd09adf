"""The model clients. `open_model` picks the provider the settings name."""

from infra.llm.base import Finished, FinishReason, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.settings import Settings

__all__ = [
    "FinishReason",
    "Finished",
    "Message",
    "Model",
    "ModelError",
    "Reasoning",
    "TextDelta",
    "ToolCall",
    "ToolSpec",
    "open_model",
]


def open_model(settings: Settings) -> Model:
    """The model that the settings name. A provider's SDK is imported only if it is the chosen one."""
    if settings.llm_provider == "openai":
        from infra.llm.openai import OpenAIModel

        return OpenAIModel.from_settings(settings)
    from infra.llm.demo import DemoModel

    return DemoModel(settings.demo_tokens_per_second)
