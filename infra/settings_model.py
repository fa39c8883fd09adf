"""The settings of the model: whose it is, how it is asked, and who stands in for it."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, model_validator

QUIRKS = ("no_tools", "no_tool_history", "max_tokens", "no_stream_options", "no_system", "short_ids")


class ModelSettings(BaseModel):
    """A part of `Settings`."""

    llm_provider: Literal["demo", "openai", "anthropic"] = "demo"
    llm_model: str | None = None
    llm_timeout_seconds: float = Field(default=60, gt=0)
    llm_quirks: str = ""
    llm_fallback: str = ""
    llm_max_tokens: int | None = Field(default=None, ge=1)
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    openai_api: Literal["chat", "responses"] = "chat"
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None
    demo_tokens_per_second: float = Field(default=25, ge=0)
    prices_file: Path | None = None

    @property
    def quirks(self) -> list[str]:
        """What is known of the model's service from the start; see `infra.llm.quirks`."""
        return [name.strip().lower() for name in self.llm_quirks.split(",") if name.strip()]

    @property
    def fallbacks(self) -> list[tuple[str, str]]:
        """The (provider, model) pairs to ask where the first cannot be had."""
        named = [name.strip() for name in self.llm_fallback.split(",") if name.strip()]
        return [(provider, model) for provider, _, model in (name.partition("/") for name in named)]

    def asking(self, provider: str, model: str) -> Self:
        """The same settings, for this model.

        Raises:
            ValidationError: they do not suffice for it.
        """
        named = {"llm_provider": provider, "llm_model": model, "llm_fallback": ""}
        return self.model_validate(self.model_dump(exclude_unset=True) | named)

    @property
    def model(self) -> str:
        """The model, and where it is asked: for people, without a key."""
        if self.llm_provider == "demo":
            return "demo"
        if self.llm_provider == "anthropic":
            return f"{self.llm_model} at {urlsplit(self.anthropic_base_url or 'https://api.anthropic.com').hostname}"
        return f"{self.llm_model} at {urlsplit(self.openai_base_url or 'https://api.openai.com').hostname}"

    @model_validator(mode="after")
    def _model_is_named(self) -> Self:
        if self.llm_provider == "openai" and not (self.openai_api_key or self.openai_base_url):
            raise ValueError("OPENAI_API_KEY: needed when LLM_PROVIDER=openai (or set OPENAI_BASE_URL)")
        if self.llm_provider == "openai" and not self.llm_model:
            raise ValueError("LLM_MODEL: needed with OPENAI_API_KEY or OPENAI_BASE_URL, for example gpt-4o-mini")
        if self.llm_provider == "anthropic" and not self.anthropic_api_key:
            raise ValueError("ANTHROPIC_API_KEY: needed when LLM_PROVIDER=anthropic")
        for provider, model in self.fallbacks:
            if provider not in ("demo", "openai", "anthropic") or not (model or provider == "demo"):
                raise ValueError("LLM_FALLBACK: pairs as openai/gpt-4o-mini, separated by commas")
            self.asking(provider, model)
        if wrong := [name for name in self.quirks if name not in QUIRKS]:
            raise ValueError(f"LLM_QUIRKS: {wrong[0]} is none of {', '.join(QUIRKS)}")
        if self.llm_provider == "anthropic" and not self.llm_model:
            raise ValueError("LLM_MODEL: needed with ANTHROPIC_API_KEY, for example claude-sonnet-4-5")
        return self
