"""The model is tried once at the start: what is wrong with it is said in words."""

from pathlib import Path

import pytest

from infra.llm.probe import try_model
from tests.conftest import make_settings
from tests.support.model_service import Strict, provider


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (None, "answers"),
        ((401, "sk-secret"), "FAILS: The model's service does not accept the server's key. (HTTP 401)"),
        ((404, "no such model"), "FAILS: The model's service does not know this model. (HTTP 404)"),
    ],
)
async def test_what_the_provider_says(refusal: tuple[int, str] | None, said: str) -> None:
    """In our own words, with the status; a key that is quoted stays out."""
    async with Strict(lambda body: refusal) as service:
        assert await try_model(make_settings(Path(), **provider(service.base_url))) == said
    assert len(service.bodies) == 1


async def test_another_model_does_not_speak_for_it() -> None:
    """With LLM_FALLBACK it is the first that is tried: the demo behind it always answers."""
    async with Strict(lambda body: (401, "no")) as service:
        settings = make_settings(Path(), **provider(service.base_url), llm_fallback="demo/")
        assert (await try_model(settings)).startswith("FAILS: ")


async def test_nobody_is_there() -> None:
    """It is told, and stops no start."""
    said = await try_model(make_settings(Path(), **provider("http://127.0.0.1:9/v1")))
    assert said == "FAILS: The model's service cannot be reached or failed."
