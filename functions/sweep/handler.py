"""What Lambda calls on a schedule. Built on the first call and kept for the next ones, the event loop with it."""

import asyncio
from contextvars import copy_context
from functools import cache
from typing import Any

from functions import cold

with cold.imports():
    from functions.aws import FLUSH_SECONDS, Numbers, bind_request, start
    from functions.sweep.sweep import Sweeper, remove_old
    from infra import tracing
    from infra.handoff import Handoff, open_handoff
    from infra.settings import Settings, SettingsError
    from infra.store import Store, open_store


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Sweep once, whatever the event says; answer with the number of sessions handed off."""
    bind_request(context)
    try:
        return {"handed_off": _opened().sweep()}
    finally:
        tracing.flush(FLUSH_SECONDS)


@cache
def _opened() -> "_Opened":
    settings = start()
    if not settings.disconnect_queue_url and not settings.handoff_url:
        raise SettingsError("DISCONNECT_QUEUE_URL, HANDOFF_URL: one is needed, to hand off what is found")
    return _Opened(settings)


class _Opened:
    """The sweeper and its event loop. What could not be opened is tried again in the next call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = Numbers("sweep")
        self._runner = asyncio.Runner()
        self._store: Store | None = None
        self._handoff: Handoff | None = None

    def sweep(self) -> int:
        """See `Sweeper.sweep`."""
        # In this call's context: a runner keeps that of its first, and the log its request's id.
        taken = self._runner.run(self._sweep(), context=copy_context())
        self._numbers.count({"HandedOff": taken})
        return taken

    async def _sweep(self) -> int:
        self._store = self._store or await open_store(self._settings)
        self._handoff = self._handoff or await open_handoff(self._settings)
        assert self._handoff
        handed_off = await Sweeper(self._store, self._handoff, self._settings.dead_after_seconds).sweep()
        if self._settings.retention_days:
            await remove_old(self._store, self._settings.retention_days)
        return handed_off

    def close(self) -> None:
        """Let go of everything. Lambda never does; a test has to."""
        for opened in (self._store, self._handoff):
            if opened:
                self._runner.run(opened.close())
        self._runner.close()
