"""`make edge`: the function on this machine does what the Lambda would with the same settings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.local.edge import VARIABLES, environment, variables
from infra.local.server import CannotStart
from tests.conftest import make_settings

ROOT = Path(__file__).resolve().parents[3]
STORE = {"supabase_url": "http://127.0.0.1:1", "supabase_key": "sb_secret_x"}


def given(**changed: Any) -> dict[str, str]:
    """The function's variables for these settings."""
    return variables(make_settings(Path(), **STORE | changed))


def test_the_settings_reach_the_function() -> None:
    """Store and secret under the function's names; without a model nothing of one, though a key be there."""
    assert given(handoff_secret="s", llm_provider="demo", openai_api_key="sk-x", llm_model="m") == {
        "SUPABASE_URL": "http://127.0.0.1:1",
        "SUPABASE_KEY": "sb_secret_x",
        "HANDOFF_SECRET": "s",
    }


def test_a_model_reaches_it_too() -> None:
    """With LLM_PROVIDER=openai all that names the model; a server of one's own needs no key."""
    model = given(llm_provider="openai", llm_model="m", openai_base_url="http://127.0.0.1:2/v1", llm_max_tokens=9)
    assert model["OPENAI_API_KEY"]
    assert (model["LLM_MODEL"], model["LLM_MAX_TOKENS"]) == ("m", "9")
    assert model["OPENAI_BASE_URL"] == "http://127.0.0.1:2/v1"
    assert set(model) <= set(VARIABLES)


def test_a_secret_is_made_where_there_is_none() -> None:
    """Another one each time, so that no default of ours is anybody's secret."""
    assert len({given()["HANDOFF_SECRET"] for _ in range(3)}) == 3


def test_nothing_else_of_the_surroundings_reaches_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that lies around in the shell is not used by accident."""
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "of another project")
    assert "SUPABASE_SERVICE_ROLE_KEY" not in environment(1, given())


def test_without_a_supabase_it_says_what_is_missing(tmp_path: Path) -> None:
    """One line that names the setting, and no traceback."""
    with pytest.raises(CannotStart, match="SUPABASE_URL"):
        variables(make_settings(Path()))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infra.local.edge"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("cannot start: SUPABASE_URL and SUPABASE_KEY: needed")
    assert ran.stderr.count("\n") == 1
