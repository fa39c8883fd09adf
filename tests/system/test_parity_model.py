"""The Lambda and the Edge function with a model: they ask it the same, and make the same of what it says."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from infra.local.edge import Edge
from tests.support.aimock import API_KEY, AIMock, run_aimock
from tests.support.edge import an_edge, call, variables
from tests.support.parity import Case, Lambda, both, lived, row
from tests.support.supabase import Supabase


@pytest.fixture(scope="module")
def service() -> Iterator[AIMock]:
    """The service both ask."""
    with run_aimock() as running:
        yield running


@pytest.fixture
def aimock(service: AIMock) -> AIMock:
    """The same, knowing no answers yet."""
    service.reset()
    return service


def model(service: AIMock) -> dict[str, str]:
    """The settings that lead to it, which both read."""
    named = {"OPENAI_API_KEY": API_KEY, "OPENAI_BASE_URL": service.base_url}
    return named | {"LLM_MODEL": "gpt-4o-mini", "LLM_MAX_TOKENS": "300"}


@pytest.fixture(scope="module")
def edge(supabase: Supabase, service: AIMock) -> Iterator[Edge]:
    """The Edge function with a model."""
    with ExitStack() as ending:
        yield an_edge(ending, variables(supabase) | model(service))


@pytest.fixture(scope="module")
def aws(supabase: Supabase, service: AIMock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lambda]:
    """The Lambda with the same one."""
    it = Lambda(
        supabase, tmp_path_factory.mktemp("lambda"), LLM_PROVIDER="openai", NO_PROXY="127.0.0.1", **model(service)
    )
    yield it
    it.close()


@pytest.mark.parametrize("name", ["analytical", "unicode", "interrupted"])
def test_both_ask_the_model_the_same(supabase: Supabase, aimock: AIMock, aws: Lambda, edge: Edge, name: str) -> None:
    """The same messages go to the same model, and what it says is folded into one line the same way."""
    said = "\u2029 They\u00a0spoke\x1f \n of\u3000things.\ufeff \U0001f600\x00\ud83d"
    aimock.answer({}, {"content": said})
    left = both(supabase, aws, edge, Case.read(name))
    assert left["final_summary"] == "They spoke of things.\ufeff \U0001f600\ufffd\ufffd"
    of_lambda, of_edge = aimock.bodies()
    same = {"model", "messages", "max_completion_tokens"}
    assert {it: of_lambda[it] for it in same} == {it: of_edge[it] for it in same}


@pytest.mark.parametrize("answer", [{"error": {"message": "no", "type": "t"}, "status": 400}, {"content": " \n "}])
def test_both_write_plainly_where_the_model_does_not(
    supabase: Supabase, aimock: AIMock, aws: Lambda, edge: Edge, answer: dict[str, Any]
) -> None:
    """It refuses, or has nothing to say: the plain summary is better than none."""
    aimock.answer({}, answer)
    left = both(supabase, aws, edge, Case.read("casual"))
    assert left["final_summary"].startswith("A casual conversation of 2 messages and 2 replies about")


@pytest.mark.parametrize("status", [429, 500])
def test_both_end_a_session_whatever_the_model_does(
    supabase: Supabase, aimock: AIMock, aws: Lambda, edge: Edge, status: int
) -> None:
    """It is busy, or broken: both write the same plain summary; the queue's message comes once more, to improve it."""
    aimock.answer({}, {"error": {"message": "not now", "type": "t"}, "status": status})
    case = Case.read("casual")
    by_lambda, by_edge = (aws.run(lived(aws.store, case)) for _ in range(2))
    assert not aws.takes(case.bodies(by_lambda)[0])
    assert call(edge, case.bodies(by_edge)[0]) == (200, {"outcome": "written"})
    assert len(aimock.journal()) == 2
    assert row(supabase, by_lambda) == row(supabase, by_edge)
    assert row(supabase, by_edge)["end_time"]
    assert row(supabase, by_edge)["final_summary"].startswith("A casual conversation of 2 messages")


def test_nothing_said_is_not_asked_about(supabase: Supabase, aimock: AIMock, aws: Lambda, edge: Edge) -> None:
    """There is nothing to summarise, and so nothing to pay for."""
    left = both(supabase, aws, edge, Case.read("only-the-assistant"))
    assert left["final_summary"] == "The session ended before anything was said."
    assert aimock.journal() == []


def test_a_repeated_message_is_not_paid_for_again(supabase: Supabase, aimock: AIMock, aws: Lambda, edge: Edge) -> None:
    """Of three messages about one session the first asks the model, and no other."""
    aimock.answer({}, {"content": "They spoke of apples."})
    assert both(supabase, aws, edge, Case.read("repeated"))["final_summary"] == "They spoke of apples."
    assert len(aimock.journal()) == 2
