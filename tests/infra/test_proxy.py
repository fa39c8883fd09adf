"""Proxies from the environment: used for what is elsewhere, never for this machine, and named where they cannot be."""

import os

import httpx
import pytest
from pydantic import SecretStr

from infra.proxy import NAMES, prepare_proxies
from infra.settings import Settings, SettingsError

HERE = Settings(disconnect_queue_url="http://127.0.0.1:1/q", aws_endpoint_url="http://127.0.0.1:1")
ELSEWHERE = Settings(supabase_url="https://abcdefgh.supabase.co", supabase_key=SecretStr("k"))
SECRET = "do-not-print-me"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, "")  # so that it is put back afterwards
            monkeypatch.delenv(spelling)


@pytest.mark.parametrize("spelling", ["HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "value", [f"socks5://user:{SECRET}@localhost:1", "foo://x", "http://", "http://x:y:z", "https://h:0"]
)
def test_a_proxy_that_cannot_be_used(spelling: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be used stops whoever needs it, in a line without its password; nobody else notices."""
    monkeypatch.setenv(spelling, value)
    with pytest.raises(SettingsError, match=f"^{spelling}: ") as refused:
        prepare_proxies(ELSEWHERE)
    assert SECRET not in str(refused.value)
    prepare_proxies(HERE)
    assert spelling not in os.environ
    httpx.Client().close()  # which would raise


def test_calls_to_this_machine_take_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls to this machine bypass the proxy, in addition to the hosts in NO_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    prepare_proxies(ELSEWHERE)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "intranet.example,localhost,127.0.0.1,::1"
    with httpx.Client() as client:
        spared = [client._transport_for_url(httpx.URL(url)) for url in ("http://127.0.0.1:1", "http://localhost:2")]
        taken = client._transport_for_url(httpx.URL("http://example.com"))
    assert spared == [client._transport] * 2
    assert taken is not client._transport
