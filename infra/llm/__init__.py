"""The model clients. `open_model` picks the provider the settings name."""

from infra import tracing
from infra.llm.base import Finished, FinishReason, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.settings import Settings, SettingsError

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
    "open_one",
]


def open_model(settings: Settings) -> Model:
    """The model that the settings name, with those that stand in for it: the container's."""
    model = open_one(settings)
    if not settings.fallbacks:
        return model
    from infra.llm.fallback import FallbackModel

    others = [(f"{each[0]}/{each[1]}", open_one(settings.asking(*each))) for each in settings.fallbacks]
    return FallbackModel([(settings.model, model), *others], settings.llm_timeout_seconds)


def open_one(settings: Settings) -> Model:
    """That model alone, asked once a call: the function's, which pays for a session at most twice.

    A provider's SDK is imported only if it is the chosen one.
    """
    model = _provider(settings)
    if not tracing.is_on():
        return model
    from infra.llm.traced import TracedModel

    return TracedModel(model, settings.llm_provider, settings.llm_model or settings.llm_provider)


def _provider(settings: Settings) -> Model:
    if settings.llm_provider == "openai":
        from infra.llm.openai import OpenAIModel, ResponsesModel

        return (ResponsesModel if settings.openai_api == "responses" else OpenAIModel).from_settings(settings)
    if settings.llm_provider == "anthropic":
        try:
            from infra.llm.anthropic import AnthropicModel
        except ModuleNotFoundError:
            raise SettingsError("LLM_PROVIDER: anthropic is not part of this package; see infra/PROVIDERS.md") from None
        return AnthropicModel.from_settings(settings)
    from infra.llm.demo import DemoModel

    return DemoModel(settings.demo_tokens_per_second)
