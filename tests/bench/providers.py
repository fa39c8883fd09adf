"""Our server on a real provider's path, beside a naive script on its SDK: the same fake provider for both."""

import statistics
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

from tests.bench.lateness import Lateness, lateness
from tests.bench.load import Keeping
from tests.bench.provider import providing
from tests.bench.streaming import CPU, P50, P99, RATE, Load, Row, Target, as_row, compare, measure, median_rows, play
from tests.bench.table import Table, progress


@dataclass(frozen=True)
class Api:
    """How our server is told to use an API, and what one writes for it without us."""

    name: str
    naive: str
    settings: Callable[[str], dict[str, str]]
    """For a provider at this URL. The SDKs of the naive scripts read the same variables."""


def _openai(url: str) -> dict[str, str]:
    return {
        "LLM_PROVIDER": "openai",
        "LLM_MODEL": "m",
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_BASE_URL": f"{url}/v1",
    }


def _anthropic(url: str) -> dict[str, str]:
    return {
        "LLM_PROVIDER": "anthropic",
        "LLM_MODEL": "m",
        "ANTHROPIC_API_KEY": "sk-bench",
        "ANTHROPIC_BASE_URL": url,
    }


CHAT = Api("OpenAI", "naive", _openai)
ANTHROPIC = Api("Anthropic", "naive_anthropic", _anthropic)
RESPONSES = Api("Responses", "naive_responses", lambda url: _openai(url) | {"OPENAI_API": "responses"})


def paced(api: Api) -> Load:
    """A load that both servers can carry."""
    return Load(f"{api.name}, 100 x 50 tok/s", 50.0, 150, 2, sessions=100, spread=1.0)


FLAT = Load("OpenAI, flat out, 100 x 200 words", 0.0, 200, 3, sessions=100)
MANY = Load("OpenAI, 400 x 50 tok/s", 50.0, 150, 2, sessions=400, spread=3.0)
TARGETS: dict[tuple[str, str], Target] = {
    **{
        (paced(api).name, CPU): ("<= 0.22 x", lambda ours, naive: ours <= 0.22 * naive)
        for api in (CHAT, ANTHROPIC, RESPONSES)
    },
    (FLAT.name, RATE): (">= 6 x", lambda ours, naive: ours >= 6 * naive),
    (FLAT.name, P50): ("<= 0.7 x", lambda ours, naive: ours <= 0.7 * naive),
}


def measured(api: Api, kind: str, load: Load) -> Row:
    """One load on a provider of its own."""
    with providing(load.rate) as url:
        return measure("ours" if kind == "ours" else api.naive, load, **api.settings(url))


def measured_late(load: Load) -> tuple[Row, Lateness]:
    """One load on our server and a provider that stamps its words: also how late they came."""
    with providing(load.rate, stamped=True) as url:
        cpu, result = play("ours", load, Keeping, **CHAT.settings(url))
    return as_row(load, cpu, result), lateness(result.arrivals, load.tokens)


def bench_providers(table: Table, rounds: int) -> None:
    """Every API and load, our server and the naive script in turns; and many sessions on ours alone."""
    for api, load in ((CHAT, paced(CHAT)), (ANTHROPIC, paced(ANTHROPIC)), (RESPONSES, paced(RESPONSES)), (CHAT, FLAT)):
        compare(table, rounds, load, "naive", partial(measured, api), TARGETS)
    bench_many(table, rounds)


def bench_many(table: Table, rounds: int) -> None:
    """Many sessions at once: what a token costs, and how late it comes."""
    seen = []
    for number in range(rounds):
        progress(f"{MANY.name}: ours, round {number + 1} of {rounds}")
        seen.append(measured_late(MANY))
    many = median_rows([row for row, _ in seen])
    columns = zip(*(astuple(late) for _, late in seen), strict=True)
    whole, providers, ours = (statistics.median(column) for column in columns)
    table.add(MANY.name, CPU, many.cpu_us)
    table.add(MANY.name, P99, many.p99_ms, None, "<= 100 ms", lambda ours, _: ours <= 100)
    table.add(MANY.name, "token late p99, ms", whole, None, "<= 100 ms", lambda late, _: late <= 100)
    table.add(MANY.name, "the provider's own p99, ms", providers)
    table.add(MANY.name, "from sent to read p99, ms", ours)
