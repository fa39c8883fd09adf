"""The Lambda and the Edge function: the same sessions, in the same database, end in the same rows."""

from collections.abc import Iterator

import pytest

from infra.local.edge import Edge
from tests.support.edge import edge  # noqa: F401 - a fixture
from tests.support.parity import Case, Lambda, both, names
from tests.support.supabase import Supabase


@pytest.fixture(scope="module")
def aws(supabase: Supabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lambda]:
    """The Lambda, without a model."""
    it = Lambda(supabase, tmp_path_factory.mktemp("lambda"))
    yield it
    it.close()


@pytest.mark.parametrize("name", names())
def test_both_leave_the_same_row(supabase: Supabase, aws: Lambda, edge: Edge, name: str) -> None:  # noqa: F811
    """Summary, end to the microsecond and duration are equal, and the same messages are taken."""
    both(supabase, aws, edge, Case.read(name))
