"""Fixtures of every model over HTTP: a fake service that we did not write, and no proxy between."""

from collections.abc import Iterator

import pytest

from tests.support.aimock import AIMock, run_aimock


@pytest.fixture(scope="session")
def aimock_process() -> Iterator[AIMock]:
    """One aimock for all tests."""
    with run_aimock() as running:
        yield running


@pytest.fixture
def aimock(aimock_process: AIMock) -> AIMock:
    """An aimock that knows no answers yet."""
    aimock_process.reset()
    return aimock_process


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the developer's machine has no part in this."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
