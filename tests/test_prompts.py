"""The prompts' file: what it may say, and in which words a bad one stops the start."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from chat.main import open_backend
from chat.prompts import load_prompts, parse_prompts
from infra.settings import SettingsError, load_settings
from tests.conftest import make_settings

EXAMPLE = Path(__file__).resolve().parents[1] / "infra" / "prompts.example.toml"
MODE = '[modes.m]\nprompt = "P"\n'
TWO = f'{MODE}[modes.n]\nprompt = "N"\n'


def refusal(tmp_path: Path, **given: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load_prompts(make_settings(tmp_path, **given))
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_without_a_setting_there_are_two_modes(tmp_path: Path) -> None:
    """The packaged file: by rules, and casual where none matches."""
    prompts = load_prompts(make_settings(tmp_path))
    assert (list(prompts.modes), prompts.default, prompts.by) == (["analytical", "casual"], "casual", "rules")
    assert prompts.prompt("analytical") == (
        "You are an analytical assistant. Be precise and structured: state what is known, show the figures, say how "
        "sure you are. Use the tools when they can give you facts."
    )
    assert prompts.prompt("casual") == (
        "You are a casual, friendly assistant. Keep it short and warm, in plain words. Use the tools when the user "
        "asks for something they can give."
    )


def test_one_prompt_for_everything(tmp_path: Path) -> None:
    """SYSTEM_PROMPT is the prompt of every session, whatever it begins with, and of those that have another mode."""
    prompts = load_prompts(make_settings(tmp_path, system_prompt="You are a pirate."))
    mode = prompts.route("fetch the data")
    assert mode == prompts.route("hello") == "general"
    assert prompts.prompt(mode) == prompts.prompt("casual") == "You are a pirate."


def test_the_example_is_a_file_that_works(tmp_path: Path) -> None:
    """It loads as it stands, and its rules do what its comments say."""
    prompts = load_prompts(make_settings(tmp_path, prompts_file=EXAMPLE))
    said = ["I want a REFUND", "Order #12345 please", "my deliveries", "what does it cost, any discounts?", "hello"]
    assert [prompts.route(message) for message in said] == ["support", "support", "support", "sales", "general"]
    assert prompts.route("refund" + "x") == "support", "a star stands for any ending"
    assert prompts.route("invoices") == "general", "a word without one is the whole word"
    assert prompts.prompt("support").startswith("You are the support assistant of Example Shop. Be polite")
    assert all(mode.description for mode in prompts.modes.values())


def test_a_file_is_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PROMPTS_FILE and SYSTEM_PROMPT are settings as any other."""
    monkeypatch.setenv("PROMPTS_FILE", str(EXAMPLE))
    assert "support" in load_prompts(load_settings(None)).modes
    monkeypatch.delenv("PROMPTS_FILE")
    monkeypatch.setenv("SYSTEM_PROMPT", "Ahoy.")
    assert load_prompts(load_settings(None)).prompt(None) == "Ahoy."


def test_an_editors_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    """Some editors begin a UTF-8 file with one."""
    (tmp_path / "p.toml").write_text(MODE, encoding="utf-8-sig")
    assert list(load_prompts(make_settings(tmp_path, prompts_file=tmp_path / "p.toml")).modes) == ["m"]


@pytest.mark.parametrize(
    ("text", "default", "by"),
    [
        (MODE, "m", "rules"),
        (f'route = "model"\n{MODE}', "m", "model"),
        (f'route = "n"\n{TWO}', "n", "default"),
        (f'route = "n"\ndefault = "m"\n{TWO}', "n", "default"),
        (f'route = "rules"\ndefault = "n"\n{TWO}', "n", "rules"),
        (f'route = "model"\ndefault = "n"\n{TWO}', "n", "model"),
    ],
)
def test_ways_to_choose(text: str, default: str, by: str) -> None:
    """By rules unless the file says otherwise; the only mode, and a fixed one, need no default."""
    prompts = parse_prompts(text)
    assert (prompts.default, prompts.by) == (default, by)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Object missing required field `modes`"),
        ("modes = {}", "modes: at least one is needed, for example [modes.general]"),
        ("modes = 3", "Expected `object`, got `int` - at `$.modes`"),
        ("prompt = ", "not TOML: Invalid value (at end of document)"),
        ("{}", "not TOML: Invalid statement (at line 1, column 1)"),
        (f"rout = 1\n{MODE}", "Object contains unknown field `rout`"),
        (f'"a\\nb" = 1\n{MODE}', "Object contains unknown field `a b`"),
        ('[modes.m]\npromt = "P"', "modes.m: Object contains unknown field `promt`"),
        (f"{MODE}when.wrds = []", "modes.m: Object contains unknown field `wrds` - at `$.when`"),
        (f'{MODE}when.words = "refund"', "modes.m: Expected `array`, got `str` - at `$.when.words`"),
        ("[modes.m]\nprompt = 3", "modes.m: Expected `str`, got `int` - at `$.prompt`"),
        ('[modes]\nm = "P"', "modes.m: Expected `object`, got `str`"),
        ("[modes.m]", "modes.m: Object missing required field `prompt`"),
        ('[modes.m]\nprompt = " \\n"', "modes.m: prompt: is blank"),
        (
            f"{MODE}when.patterns = ['(']",
            "modes.m: when.patterns: '(': missing ), unterminated subpattern at position 0",
        ),
        (f"{MODE}when.patterns = ['a{{99999999999}}']", "modes.m: when.patterns: 'a{99999999999}': "),
        (f"{MODE}when.words = ['']", "modes.m: when.words: '' is not a word"),
        (f"{MODE}when.words = ['*']", "modes.m: when.words: '*' is not a word"),
        ('[modes.M]\nprompt = "P"', "modes: a name must match [a-z0-9_-]{1,32}, not 'M'"),
        (f'[modes.{"m" * 33}]\nprompt = "P"', "modes: a name must match [a-z0-9_-]{1,32}, not 'mmm"),
        ('[modes."m\\n"]\nprompt = "P"', "modes: a name must match [a-z0-9_-]{1,32}, not 'm\\n'"),
        ('[modes.model]\nprompt = "P"', "modes.model: a mode cannot be called 'model'"),
        (TWO, "default: needed where there are several modes; one of m, n"),
        (f'default = "x"\n{TWO}', "default: no mode is called 'x'; there are m, n"),
        (
            f'route = "x"\ndefault = "m"\n{TWO}',
            'route: must be "rules", "model" or the name of a mode (m, n), not \'x\'',
        ),
        (f'default = ""\n{MODE}', "default: no mode is called ''; there are m"),
        (f'route = ""\n{MODE}', 'route: must be "rules", "model" or the name of a mode (m), not \'\''),
        (f'route = "x"\n{MODE}', 'route: must be "rules", "model" or the name of a mode (m), not \'x\''),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    """One line: the setting, the file, the mode or the key, and the mistake."""
    file = tmp_path / "my.toml"
    file.write_text(text)
    assert refusal(tmp_path, prompts_file=file).startswith(f"PROMPTS_FILE: {file}: {problem}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a folder, or not text."""
    missing, utf16 = tmp_path / "missing.toml", tmp_path / "utf16.toml"
    utf16.write_bytes(MODE.encode("utf-16"))
    assert refusal(tmp_path, prompts_file=missing) == (
        f"PROMPTS_FILE: {missing}: cannot be read: No such file or directory"
    )
    assert refusal(tmp_path, prompts_file=tmp_path) == f"PROMPTS_FILE: {tmp_path}: cannot be read: Is a directory"
    assert refusal(tmp_path, prompts_file=utf16) == f"PROMPTS_FILE: {utf16}: is not UTF-8 text"


def test_one_prompt_or_a_file_but_not_both(tmp_path: Path) -> None:
    """Which one counts would be a guess; and a blank prompt is a mistake."""
    both = refusal(tmp_path, system_prompt="Ahoy.", prompts_file=EXAMPLE)
    assert both == "SYSTEM_PROMPT: set this or PROMPTS_FILE, not both"
    assert refusal(tmp_path, system_prompt=" \n") == "SYSTEM_PROMPT: is blank"


def test_a_prompt_of_broken_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python reads a variable that is not UTF-8 as halves of surrogate pairs, which no model could be sent."""
    monkeypatch.setenv("SYSTEM_PROMPT", os.fsdecode(b"caf\xe9"))
    with pytest.raises(SettingsError, match=r"^SYSTEM_PROMPT: is not UTF-8 text$"):
        load_prompts(load_settings(None))


async def test_a_bad_file_stops_the_start(tmp_path: Path) -> None:
    """Before anything is opened: no database is made for a server that will not run."""
    settings = make_settings(tmp_path / "data", prompts_file=tmp_path / "missing.toml")
    with pytest.raises(SettingsError, match=r"PROMPTS_FILE: .*missing\.toml"):
        async with asyncio.timeout(10), open_backend(settings):
            pass
    assert not (tmp_path / "data").exists()
