"""Proxies from the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as curl has made them common.

Our HTTP clients (httpx, the SDKs, boto3, urllib) read them by themselves, and each stumbles in its own way over what
it does not understand. So the environment is put in order once, before any of them is made.
"""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from infra.settings import Settings, SettingsError

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def prepare_proxies(settings: Settings) -> None:
    """Let no call to this machine take a proxy, and no unusable proxy break what does not need one.

    Raises:
        SettingsError: a proxy that calls to elsewhere would take cannot be used.
    """
    spared = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "", *LOOPBACK]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(part for part in spared if part)
    for name in [spelling for upper in NAMES for spelling in (upper, upper.lower()) if os.environ.get(spelling)]:
        if problem := _problem(os.environ[name]):
            if calls_elsewhere(settings):
                raise SettingsError(f"{name}: {problem}")
            del os.environ[name]


def calls_elsewhere(settings: Settings) -> bool:
    """Whether these settings have us call anything that is not on this machine."""
    asked = [settings.supabase_url, settings.handoff_url]
    if settings.llm_provider != "demo":
        asked.append(settings.openai_base_url or "https://api.openai.com")
    if settings.disconnect_queue_url:
        asked.append(settings.aws_endpoint_url or settings.disconnect_queue_url)
    return any(url and not is_loopback(url) for url in asked)


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    host = urlsplit(url).hostname or ""
    return host in LOOPBACK or host.startswith("127.") or host.endswith(".localhost")


def _problem(value: str) -> str | None:
    """What is wrong with a proxy's address, without quoting it: it may hold a password."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    if not named:
        return "not the address of a proxy, such as http://proxy.example.com:3128"
    if parts.scheme in ("http", "https") or (parts.scheme in ("socks5", "socks5h") and find_spec("socksio")):
        return None
    if parts.scheme.startswith("socks"):
        return "a SOCKS proxy needs the package socksio (pip install 'httpx[socks]'); or take an http:// proxy"
    return "the proxy's address must begin with http:// or https://"
