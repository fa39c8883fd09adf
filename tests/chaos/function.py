"""The function's side in a process of its own: the event source with the summary's handler, and the sweep on a timer.

Run as `python -m tests.chaos.function`, with the function's settings in the environment.
"""

import asyncio
import threading
import time

from infra.handoff import sqs_client
from infra.local.event_source import EventSource
from infra.local.stack import load_handler
from infra.settings import load_settings
from infra.telemetry import configure_logging

SWEEP_SECONDS = 1.0


def sweep_for_ever() -> None:
    """Call the sweep's handler again and again; it may fail, as a scheduled function may."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    handler = load_handler("sweep")
    while True:
        time.sleep(SWEEP_SECONDS)
        try:
            handler({}, None)
        except Exception as error:
            print(f"sweep failed: {error}", flush=True)


def main() -> None:
    """Until it is killed."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    threading.Thread(target=sweep_for_ever, daemon=True).start()
    assert settings.disconnect_queue_url
    source = EventSource(sqs_client(settings), settings.disconnect_queue_url, load_handler("summary"))
    source.start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
