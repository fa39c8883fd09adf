"""Every setting of both halves, read from the environment and from `.env`, checked once at the start."""

import os
from pathlib import Path
from typing import Any, Literal, Self, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field, SecretStr, ValidationError, model_validator

from infra.env_file import LIKENESS, misspelt, read_env_file
from infra.settings_callers import HEADER_WORD, CallerSettings
from infra.settings_model import ModelSettings

WhileBusy = Literal["queue", "interrupt", "reject", "merge"]

URLS = {
    "supabase_url": "https://abcdefgh.supabase.co",
    "openai_base_url": "http://localhost:11434/v1",
    "auth_issuer": "https://example.auth0.com/",
    "auth_jwks_url": "https://example.auth0.com/.well-known/jwks.json",
    "anthropic_base_url": "https://api.anthropic.com",
    "disconnect_queue_url": "https://sqs.us-east-1.amazonaws.com/123456789012/session-ended",
    "handoff_url": "https://abcdefgh.supabase.co/functions/v1/summary",
    "aws_endpoint_url": "http://localhost:4566",
    "otel_exporter_otlp_endpoint": "http://localhost:4318",
}
"""The settings that are addresses, each with an example."""


class SettingsError(Exception):
    """A setting is missing or wrong. The message is one line that names the variable."""


class Settings(CallerSettings, ModelSettings):
    """The settings; `.env.example` says what each is for. Durations are seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Where things are kept
    data_dir: Path = Path(".data")
    supabase_key: SecretStr | None = None

    # The container
    port: int = Field(default=8000, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    container_id: str | None = None
    allowed_origins: str = ""
    forwarded_allow_ips: str = "127.0.0.1"
    max_sessions: int = Field(default=2000, ge=1)
    max_sessions_bytes: int = Field(default=192 * 1024 * 1024, ge=1024 * 1024)
    max_frame_bytes: int = Field(default=256 * 1024, ge=1024)
    max_message_chars: int = Field(default=32_000, ge=1)
    linger_seconds: float = Field(default=60, ge=0)
    going_away_seconds: float = Field(default=2, ge=0)
    heartbeat_seconds: float = Field(default=10, gt=0, le=3600)
    reconcile_seconds: float = Field(default=60, gt=0)
    dead_after_seconds: float = Field(default=60, gt=0, le=86_400)
    retention_days: float | None = Field(default=None, gt=0)
    drain_seconds: float = Field(default=20, ge=0)
    replay_bytes: int = Field(default=256 * 1024, ge=0)
    slow_reader_seconds: float = Field(default=20, gt=0)
    ping_seconds: float = Field(default=20, gt=0)
    keep_alive_seconds: int = Field(default=130, ge=1)

    # The conversation
    prompts_file: Path | None = None
    system_prompt: str | None = None
    while_busy: WhileBusy = "queue"
    max_queued_messages: int = Field(default=8, ge=1)
    history_events: int = Field(default=200, ge=2)
    max_tool_rounds: int = Field(default=5, ge=1)
    tool_timeout_seconds: float = Field(default=15, gt=0)

    # The journal and the hand-off
    journal_max_events: int = Field(default=20_000, ge=1)
    disconnect_queue_url: str | None = None
    handoff_url: str | None = None
    handoff_secret: SecretStr | None = None
    handoff_secret_old: SecretStr | None = None
    aws_region: str = "us-east-1"
    aws_endpoint_url: str | None = None

    # Telemetry
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_headers: SecretStr | None = None
    otel_service_name: str = "realtime-ai-backend"
    otel_traces_sampler_arg: float = Field(default=1, ge=0, le=1)
    trace_contents: bool = False

    @property
    def origins(self) -> list[str]:
        """The pages that may connect besides the server's own; `["*"]` for all."""
        origins = [origin.strip() for origin in self.allowed_origins.split(",") if origin.strip()]
        return ["*"] if "*" in origins else origins

    @property
    def otel_headers(self) -> dict[str, str]:
        """What the collector wants to be told with each batch, such as a key."""
        given = self.otel_exporter_otlp_headers.get_secret_value() if self.otel_exporter_otlp_headers else ""
        pairs = (pair.partition("=") for pair in given.split(",") if pair.strip())
        return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Words in whatever case; and a key alone chooses its provider."""
        words = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is Literal}
        meant = {
            name: value.strip().lower() if name in words and isinstance(value, str) else value
            for name, value in given.items()
        }
        if not meant.get("llm_provider") and (meant.get("openai_api_key") or meant.get("openai_base_url")):
            meant["llm_provider"] = "openai"
        if not meant.get("llm_provider") and meant.get("anthropic_api_key"):
            meant["llm_provider"] = "anthropic"
        return meant

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for name, example in URLS.items():
            value = getattr(self, name)
            if value and not (value.startswith(("http://", "https://")) and urlsplit(value).hostname):
                raise ValueError(f"{name.upper()}: must begin with https:// (or http://), for example {example}")
        if self.supabase_url and not self.supabase_key:
            raise ValueError("SUPABASE_KEY: needed with SUPABASE_URL; take the project's secret (service) key")
        if self.supabase_key and not self.supabase_url:
            raise ValueError("SUPABASE_URL: needed with SUPABASE_KEY; without both, sessions are kept in SQLite")
        if self.handoff_url and self.disconnect_queue_url:
            raise ValueError("HANDOFF_URL: set this or DISCONNECT_QUEUE_URL, not both")
        if self.handoff_url and not self.handoff_secret:
            raise ValueError("HANDOFF_SECRET: needed with HANDOFF_URL; the same as the function's own")
        if wrong := [name for name, value in self.otel_headers.items() if not HEADER_WORD.fullmatch(name) or not value]:
            raise ValueError(f"OTEL_EXPORTER_OTLP_HEADERS: pairs as api-key=…, by commas; not {len(wrong)} of these")
        if self.handoff_secret and not HEADER_WORD.fullmatch(self.handoff_secret.get_secret_value()):
            raise ValueError("HANDOFF_SECRET: must be of ASCII letters, digits and signs, without spaces")
        if self.dead_after_seconds <= 2 * self.heartbeat_seconds:
            raise ValueError("DEAD_AFTER_SECONDS: must be more than twice HEARTBEAT_SECONDS: a beat may be late")
        return self


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings; the environment wins over `env_file`, which need not exist. An empty value is none.

    Raises:
        SettingsError: a value is wrong or missing. Values are left out of the message: some are secrets.
    """
    try:
        in_file = read_env_file(env_file)
    except UnicodeDecodeError:
        raise SettingsError(f"{env_file}: this file is not UTF-8 text") from None
    if problems := [f"{name}: unknown, did you mean {known}?" for name, known in misspelt(in_file, _known())]:
        raise SettingsError(f"{env_file}: {'; '.join(problems)}")
    found = {name.lower(): value for name, value in (*in_file.items(), *os.environ.items()) if value}
    try:
        return Settings.model_validate({name: found[name] for name in Settings.model_fields if name in found})
    except ValidationError as error:
        raise SettingsError("; ".join(_line(problem["loc"], problem["msg"]) for problem in error.errors())) from None


def unread(env_file: Path = Path(".env")) -> list[str]:
    """A line for each name in the file that is no setting, though it looks like one."""
    names = misspelt(read_env_file(env_file), _known(), LIKENESS)
    return [f"{name} in {env_file} is no setting of this server (the nearest is {known})" for name, known in names]


def _known() -> set[str]:
    return {name.upper() for name in Settings.model_fields}


def _line(loc: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{str(loc[0]).upper()}: {message}" if loc else message
