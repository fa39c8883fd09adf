"""Settings: read from the environment and `.env`, and a wrong one stops the start in a line that names it."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra.settings import URLS, Settings, SettingsError, load_settings, unread

EXAMPLE = Path(__file__).resolve().parents[2] / ".env.example"
SECRET = "sk-do-not-print-me"


def refusal() -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(None)
    message = str(raised.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_nothing_has_to_be_set() -> None:
    """Without any setting there is an embedded store and a model that needs no key."""
    settings = load_settings(None)
    assert (settings.data_dir, settings.port, settings.llm_provider) == (Path(".data"), 8000, "demo")
    assert settings == Settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "http", "PORT: Input should be a valid integer, unable to parse string as an integer"),
        ("PORT", "65536", "PORT: Input should be less than or equal to 65535"),
        ("MAX_SESSIONS", "0", "MAX_SESSIONS: Input should be greater than or equal to 1"),
        ("MAX_FRAME_BYTES", "1", "MAX_FRAME_BYTES: Input should be greater than or equal to 1024"),
        ("MAX_MESSAGE_CHARS", "-1", "MAX_MESSAGE_CHARS: Input should be greater than or equal to 1"),
        ("LINGER_SECONDS", "-1", "LINGER_SECONDS: Input should be greater than or equal to 0"),
        ("SLOW_READER_SECONDS", "0", "SLOW_READER_SECONDS: Input should be greater than 0"),
        ("PING_SECONDS", "0", "PING_SECONDS: Input should be greater than 0"),
        ("WHILE_BUSY", "shout", "WHILE_BUSY: Input should be 'queue', 'interrupt', 'reject' or 'merge'"),
        ("MAX_QUEUED_MESSAGES", "0", "MAX_QUEUED_MESSAGES: Input should be greater than or equal to 1"),
        ("HISTORY_EVENTS", "1", "HISTORY_EVENTS: Input should be greater than or equal to 2"),
        ("MAX_TOOL_ROUNDS", "0", "MAX_TOOL_ROUNDS: Input should be greater than or equal to 1"),
        ("TOOL_TIMEOUT_SECONDS", "0", "TOOL_TIMEOUT_SECONDS: Input should be greater than 0"),
        ("LLM_TIMEOUT_SECONDS", "soon", "LLM_TIMEOUT_SECONDS: Input should be a valid number, unable to parse"),
        ("LLM_MAX_TOKENS", "0", "LLM_MAX_TOKENS: Input should be greater than or equal to 1"),
        ("DEMO_TOKENS_PER_SECOND", "-1", "DEMO_TOKENS_PER_SECOND: Input should be greater than or equal to 0"),
        ("JOURNAL_MAX_EVENTS", "0", "JOURNAL_MAX_EVENTS: Input should be greater than or equal to 1"),
        ("LLM_PROVIDER", "skynet", "LLM_PROVIDER: Input should be "),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT: Input should be 'console' or 'json'"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which variable it is and what it should be."""
    monkeypatch.setenv(name, value)
    assert refusal().startswith(message)


@pytest.mark.parametrize("name", ["LINGER_SECONDS", "DEMO_TOKENS_PER_SECOND", "LLM_TIMEOUT_SECONDS"])
@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_what_is_no_duration_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and infinity are refused: they would slip past every bound and timer."""
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name}: ")


def test_several_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to start three times to hear of three mistakes."""
    for name in ("PORT", "WHILE_BUSY", "LOG_LEVEL"):
        monkeypatch.setenv(name, SECRET)
    message = refusal()
    assert [part.split(":")[0] for part in message.split("; ")] == ["PORT", "WHILE_BUSY", "LOG_LEVEL"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"LLM_PROVIDER": "openai", "LLM_MODEL": "m"}, "OPENAI_API_KEY: "),
        ({"LLM_PROVIDER": "openai", "OPENAI_API_KEY": SECRET}, "LLM_MODEL: "),
        ({"OPENAI_API_KEY": SECRET}, "LLM_MODEL: "),
        ({"OPENAI_API_KEY": SECRET, "PORT": "x"}, "PORT: "),
    ],
)
def test_settings_that_belong_together(given: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is missing is named, and none of the secrets is printed."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert refusal().startswith(named)


@pytest.mark.parametrize("key", ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_an_openai_compatible_model_needs_a_key_or_an_address(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server has no key."""
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("LLM_MODEL", "m")
    monkeypatch.setenv(key, "http://localhost:1/v1")
    assert load_settings(None).llm_provider == "openai"


def test_a_key_alone_chooses_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key alone chooses its provider, unless the demo is asked for by name."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("LLM_MODEL", "m")
    settings = load_settings(None)
    assert (settings.llm_provider, settings.model) == ("openai", "m at api.openai.com")
    monkeypatch.setenv("LLM_PROVIDER", "demo")
    assert (load_settings(None).llm_provider, load_settings(None).model) == ("demo", "demo")


def test_where_a_model_is_asked_is_told_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may hold a user and a password."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:{SECRET}@gpu.example:8080/v1?key={SECRET}")
    monkeypatch.setenv("LLM_MODEL", "m")
    assert load_settings(None).model == "m at gpu.example"


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("value", ["foo", "localhost:1234/v1", "https://", "ftp://localhost"])
def test_what_is_no_address_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed URL stops the start; a good one passes."""
    for other, example in {"llm_model": "m", "handoff_secret": "s", "supabase_key": "k"}.items():
        monkeypatch.setenv(other, example)
    if name != "supabase_url":
        monkeypatch.setenv("supabase_url", URLS["supabase_url"])
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name.upper()}: must begin with https:// (or http://), for example {URLS[name]}")
    monkeypatch.setenv(name, URLS[name])
    assert getattr(load_settings(None), name) == URLS[name]


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("LOG_LEVEL", "INFO", "info"),
        ("LLM_PROVIDER", " Demo ", "demo"),
        ("LOG_FORMAT", "JSON", "json"),
        ("WHILE_BUSY", "Merge", "merge"),
    ],
)
def test_words_count_in_whatever_case(name: str, value: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs write theirs in capitals."""
    monkeypatch.setenv(name, value)
    assert getattr(load_settings(None), name.lower()) == meant


@pytest.mark.parametrize(("name", "meant"), [("LLM_PROVIDR", "LLM_PROVIDER"), ("linger_second", "LINGER_SECONDS")])
def test_a_misspelt_name_in_the_file_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    """A misspelt setting is refused, with the name that was probably meant."""
    env_file = tmp_path / ".env"
    env_file.write_text(f"{name}=1\n")
    with pytest.raises(SettingsError, match=rf"{name}: unknown, did you mean {meant}\?$"):
        load_settings(env_file)


def test_a_name_of_others_in_the_file_is_no_mistake(tmp_path: Path) -> None:
    """One that looks like ours gets a line in the log, with the nearest of ours; the rest is nobody's business."""
    env_file = tmp_path / ".env"
    env_file.write_text("SUPABASE_ANON_KEY=1\nTEST_SUPABASE_URL=1\nAWS_PROFILE=x\nSTRIPE_TOKEN=1\n")
    assert load_settings(env_file) == Settings()
    assert unread(env_file) == [
        f"SUPABASE_ANON_KEY in {env_file} is no setting of this server (the nearest is SUPABASE_KEY)"
    ]


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what is printed of the settings nor of a field."""
    monkeypatch.setenv("LLM_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    settings = load_settings(None)
    assert SECRET not in f"{settings} {settings!r} {settings.openai_api_key}"
    assert settings.openai_api_key
    assert settings.openai_api_key.get_secret_value() == SECRET


def test_a_file_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file counts unless it is set outside, where an empty value is as good as none."""
    env_file = tmp_path / ".env"
    env_file.write_text('PORT=1234\nwhile_busy=merge\nLOG_LEVEL="debug"  # a comment\nNOT_OURS=1\nHOST=\nLLM_MODEL=a\n')
    monkeypatch.setenv("LOG_LEVEL", "error")
    monkeypatch.setenv("LLM_MODEL", "")
    settings = load_settings(env_file)
    assert (settings.port, settings.while_busy, settings.log_level) == (1234, "merge", "error")
    assert (settings.host, settings.llm_model) == ("127.0.0.1", "a")


def test_a_wrong_value_in_the_file_is_named(tmp_path: Path) -> None:
    """As if it were set outside."""
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=http\n")
    with pytest.raises(SettingsError, match=r"^PORT: "):
        load_settings(env_file)


def test_a_file_that_is_not_there_is_no_mistake(tmp_path: Path) -> None:
    """The defaults hold."""
    assert load_settings(tmp_path / ".env") == Settings()


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """An editor that saved it as UTF-16 must not end in a traceback."""
    env_file = tmp_path / ".env"
    env_file.write_bytes("PORT=1234\n".encode("utf-16"))
    with pytest.raises(SettingsError):
        load_settings(env_file)


def test_every_setting_is_described() -> None:
    """The example file names each, and none that is not there."""
    names = re.findall(r"^#? ?([A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    """With every comment sign before a setting taken away, it changes nothing."""
    env_file = tmp_path / ".env"
    env_file.write_text(re.sub(r"^# ?(?=[A-Z0-9_]+=)", "", EXAMPLE.read_text(), flags=re.MULTILINE))
    assert load_settings(env_file) == Settings()


STORE = {"supabase_url": "https://abcdefgh.supabase.co", "supabase_key": "sb_secret_x"}


@pytest.mark.parametrize(
    ("given", "kind", "reason"),
    [
        ({}, "none", "as HOST is 127.0.0.1: this machine alone"),
        ({"host": "localhost"}, "none", "as HOST is localhost: this machine alone"),
        ({"host": "::1"}, "none", "as HOST is ::1: this machine alone"),
        ({"host": "0.0.0.0"}, "guest", "as HOST is 0.0.0.0"),
        ({"host": "chat.example"}, "guest", "as HOST is chat.example"),
        (STORE, "none", "as HOST is 127.0.0.1: this machine alone"),
        (
            STORE | {"supabase_publishable_key": "sb_publishable_x"},
            "supabase",
            "as SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY are set",
        ),
        (STORE | {"supabase_publishable_key": "sb_publishable_x", "auth": "guest"}, "guest", "as AUTH says"),
        ({"host": "0.0.0.0", "auth": "none", "auth_none_anywhere": True}, "none", "as AUTH says"),
    ],
)
def test_who_is_asked_follows_from_what_is_set(given: dict[str, Any], kind: str, reason: str) -> None:
    """Safe where strangers can come, and nothing to do on one's own machine; and it says why."""
    settings = Settings(**given)
    assert (settings.auth_kind, settings.auth_reason) == (kind, reason)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"AUTH": "none", "HOST": "0.0.0.0"}, "AUTH: none on HOST=0.0.0.0 lets anybody in"),
        ({"AUTH": "supabase"}, "SUPABASE_URL: needed with AUTH=supabase"),
        ({"AUTH": "jwt"}, "AUTH_ISSUER, AUTH_AUDIENCE: needed with AUTH=jwt"),
        ({"AUTH": "magic"}, "AUTH: Input should be "),
        ({"SESSION_SECRET": SECRET}, "SESSION_SECRET: must have at least 32 characters"),
        ({"ADMIN_TOKEN": SECRET}, "ADMIN_TOKEN: must have at least 32 characters"),
        ({"SUPABASE_PUBLISHABLE_KEY": "sb_secret_x"}, "SUPABASE_PUBLISHABLE_KEY: this is a secret key"),
    ],
)
def test_a_door_that_would_stand_open_is_refused(
    named: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one that cannot work; the line names what to set."""
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert refusal().startswith(message)
