"""Our server on a real provider's path, beside a naive script on its SDK: the same fake provider for both."""

from tests.bench.provider import providing
from tests.bench.streaming import CPU, P50, P99, RATE, Load, Row, Target, compare, measure, median_rows
from tests.bench.table import Table, progress

PACED = Load("OpenAI, 100 x 50 tok/s", 50.0, 150, 2, sessions=100, spread=1.0)
FLAT = Load("OpenAI, flat out, 100 x 200 words", 0.0, 200, 3, sessions=100)
MANY = Load("OpenAI, 400 x 50 tok/s", 50.0, 150, 2, sessions=400, spread=3.0)
TARGETS: dict[tuple[str, str], Target] = {
    (PACED.name, CPU): ("<= 0.22 x", lambda ours, naive: ours <= 0.22 * naive),
    (FLAT.name, RATE): (">= 6 x", lambda ours, naive: ours >= 6 * naive),
    (FLAT.name, P50): ("<= 0.7 x", lambda ours, naive: ours <= 0.7 * naive),
}


def measured(kind: str, load: Load) -> Row:
    """One load on a provider of its own."""
    with providing(load.rate) as url:
        named = {"LLM_PROVIDER": "openai", "LLM_MODEL": "m", "OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": url}
        return measure(kind, load, **named)


def bench_providers(table: Table, rounds: int) -> None:
    """Every load, our server and the naive script in turns."""
    for load in (PACED, FLAT):
        compare(table, rounds, load, "naive", measured, TARGETS)
    progress(MANY.name)
    many = median_rows([measured("ours", MANY) for _ in range(rounds)])
    table.add(MANY.name, CPU, many.cpu_us)
    table.add(MANY.name, P99, many.p99_ms, None, "<= 100 ms", lambda ours, _: ours <= 100)
