"""Where the system prompts come from: the operator's file, one prompt for everything, or the file packaged here.

Read once, at the start; the conversation is handed the finished record.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chat.conversation.routing import PromptMode, Prompts
from infra.llm.base import well_formed
from infra.settings import Settings, SettingsError

PACKAGED = Path(__file__).with_name("prompts.toml")
MODE_NAME = re.compile(r"[a-z0-9_-]{1,32}")
ROUTES = ("rules", "model")
"""What `route` may say besides a mode's name, so no mode may be called either of them."""
ONLY_MODE = "general"
"""What the one mode of SYSTEM_PROMPT is called."""

T = TypeVar("T", bound=msgspec.Struct)


class When(msgspec.Struct, forbid_unknown_fields=True):
    """`[modes.NAME.when]`: whole words, whose last character may be `*` for any ending, and regular expressions."""

    words: list[str] = []
    patterns: list[str] = []


class ModeTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[modes.NAME]`."""

    prompt: str
    description: str = ""
    when: When = msgspec.field(default_factory=When)


class PromptsTable(msgspec.Struct, forbid_unknown_fields=True):
    """The file. The modes are read one by one, so that a mistake can be reported with the name of its mode."""

    modes: dict[str, Any]
    default: str | None = None
    route: str = "rules"


def load_prompts(settings: Settings) -> Prompts:
    """The prompts that the settings ask for.

    Raises:
        SettingsError: the file or the prompt cannot be used. One line that names it and says what is wrong.
    """
    if settings.system_prompt is not None:
        if settings.prompts_file:
            raise SettingsError("SYSTEM_PROMPT: set this or PROMPTS_FILE, not both")
        if not settings.system_prompt.strip():
            raise SettingsError("SYSTEM_PROMPT: is blank")
        if well_formed(settings.system_prompt) != settings.system_prompt:  # no model's service could be sent it
            raise SettingsError("SYSTEM_PROMPT: is not UTF-8 text")
        return Prompts({ONLY_MODE: PromptMode(settings.system_prompt)}, default=ONLY_MODE, by="default")
    path = settings.prompts_file or PACKAGED
    try:
        return parse_prompts(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"PROMPTS_FILE: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"PROMPTS_FILE: {path}: is not UTF-8 text") from None
    except ValueError as error:
        raise SettingsError(f"PROMPTS_FILE: {path}: {' '.join(str(error).split())}") from None


def parse_prompts(text: str) -> Prompts:
    """Read and check the text of a prompts file.

    Raises:
        ValueError: it is not TOML, or does not say what it must; the message says where.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    file = _convert(tables, PromptsTable, "")
    modes = {name: _mode(name, table) for name, table in file.modes.items()}
    if not modes:
        raise ValueError("modes: at least one is needed, for example [modes.general]")
    known = ", ".join(modes)
    fixed = file.route if file.route not in ROUTES else None
    if fixed is not None and fixed not in modes:
        raise ValueError(f'route: must be "rules", "model" or the name of a mode ({known}), not {fixed!r}')
    default = file.default if file.default is not None else fixed
    if default is None and len(modes) > 1:
        raise ValueError(f"default: needed where there are several modes; one of {known}")
    default = known if default is None else default
    if default not in modes:
        raise ValueError(f"default: no mode is called {default!r}; there are {known}")
    if fixed is not None:
        return Prompts(modes, default=fixed, by="default")
    return Prompts(modes, default=default, by="model" if file.route == "model" else "rules")


def _mode(name: str, found: Any) -> PromptMode:
    if not MODE_NAME.fullmatch(name):
        raise ValueError(f"modes: a name must match {MODE_NAME.pattern}, not {name!r}")
    if name in ROUTES:
        raise ValueError(f"modes.{name}: a mode cannot be called {name!r}, which has its own meaning for `route`")
    table = _convert(found, ModeTable, f"modes.{name}: ")
    if not table.prompt.strip():
        raise ValueError(f"modes.{name}: prompt: is blank")
    when = [_pattern(name, pattern) for pattern in table.when.patterns]
    if table.when.words:
        words = "|".join(_word(name, word) for word in table.when.words)
        when.insert(0, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE))
    return PromptMode(table.prompt, tuple(when), table.description)


def _word(mode: str, word: str) -> str:
    """The word as a regular expression."""
    stem = word.removesuffix("*")
    if not stem.strip():
        raise ValueError(f"modes.{mode}: when.words: {word!r} is not a word")
    return re.escape(stem) + (r"\w*" if stem != word else "")


def _pattern(mode: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"modes.{mode}: when.patterns: {pattern!r}: {error}") from None


def _convert(found: Any, table: type[T], where: str) -> T:
    try:
        return msgspec.convert(found, table)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}{error}") from None
