"""What Lambda calls on a schedule. Built on the first call and kept for the next ones, the event loop with it."""

import asyncio
import os
from functools import cache
from typing import Any

from functions.sweep.sweep import Sweeper
from infra.handoff import Handoff, open_handoff
from infra.settings import Settings, SettingsError, load_settings
from infra.store import Store, open_store
from infra.telemetry import configure_logging


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Sweep once, whatever the event says; answer with the number of sessions handed off."""
    return {"handed_off": _opened().sweep()}


@cache
def _opened() -> "_Opened":
    settings = load_settings()
    if _in_lambda() and not settings.supabase_url:
        raise SettingsError("SUPABASE_URL: needed in AWS Lambda, where a SQLite file would not last")
    if not settings.disconnect_queue_url and not settings.handoff_url:
        raise SettingsError("DISCONNECT_QUEUE_URL, HANDOFF_URL: one is needed, to hand off what is found")
    configure_logging(settings.log_level, settings.log_format)
    return _Opened(settings)


class _Opened:
    """The sweeper and its event loop. What could not be opened is tried again in the next call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._store: Store | None = None
        self._handoff: Handoff | None = None

    def sweep(self) -> int:
        """See `Sweeper.sweep`."""
        return self._runner.run(self._sweep())

    async def _sweep(self) -> int:
        self._store = self._store or await open_store(self._settings)
        self._handoff = self._handoff or await open_handoff(self._settings)
        assert self._handoff
        return await Sweeper(self._store, self._handoff, self._settings.dead_after_seconds).sweep()

    def close(self) -> None:
        """Let go of everything. Lambda never does; a test has to."""
        for opened in (self._store, self._handoff):
            if opened:
                self._runner.run(opened.close())
        self._runner.close()


def _in_lambda() -> bool:
    """Whether this is AWS's own Lambda; `sls invoke local` sets the function's name too, and IS_LOCAL."""
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "IS_LOCAL" not in os.environ
