"""The process: serve until a signal, then end every session and go."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from functools import partial

import uvicorn
import uvloop

from chat.main import Backend, open_backend
from chat.web.connection import Connection
from chat.web.http import HttpConnection
from chat.web.open_files import OpenFiles, make_room_for_sockets
from chat.web.operations import metrics_at
from infra.port import taken
from infra.proxy import prepare_proxies
from infra.settings import Settings, SettingsError, load_settings, unread
from infra.store import StoreMisconfigured
from infra.telemetry import configure_logging, get_logger

CANNOT_START = 2
"""The exit code where a setting, the port or the store stands in the way; one line on standard error says which."""


PARENT_FD = "PARENT_FD"
"""The variable by which the local stack names the pipe that ties this process to it."""


class Server(uvicorn.Server):
    """uvicorn's server, which drains its sessions before it stops serving.

    uvicorn itself closes every socket at once, before anybody could say goodbye, and raises the signal anew once it has
    stopped, which would end the process before the sessions are ended and the journal is written.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Drain on the first SIGINT or SIGTERM, and hurry on the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.leave)
        yield

    def leave(self) -> None:
        """Drain, then stop serving; asked a second time, stop at once."""
        if self._draining:
            self._draining.cancel()
        else:
            self._draining = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        try:
            await self._drain()
        except Exception:
            get_logger("main").exception("not drained")
        finally:
            self.should_exit = True


def create_server(backend: Backend, settings: Settings) -> Server:
    """uvicorn, set up as the product runs it: the WebSocket implementation, limits, keep-alive, and the drain."""
    return Server(
        uvicorn.Config(
            backend.app,
            http=partial(HttpConnection, files=OpenFiles(backend.sessions.metrics)),  # type: ignore[arg-type]
            ws=Connection,
            ws_max_size=settings.max_frame_bytes,
            ws_per_message_deflate=False,  # costs more than it saves on frames of a hundred bytes
            ws_ping_interval=settings.ping_seconds,
            ws_ping_timeout=settings.ping_seconds,
            timeout_keep_alive=settings.keep_alive_seconds,  # a balancer must not find it closed
            timeout_graceful_shutdown=1,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            lifespan="off",
            log_config=None,
            access_log=False,
        ),
        lambda: backend.sessions.drain(settings.drain_seconds),
    )


def listen(host: str, port: int) -> socket.socket:
    """Take the port.

    Raises:
        SettingsError: it cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(taken(host, port)) from None
        raise SettingsError(f"HOST, PORT: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
    return listener


def spare_the_collector() -> None:
    """Keep the garbage collector off what lives as long as the process, and have it look less often.

    By default it starts every 700 allocations, which is every few tokens, and in time walks every session. Nothing
    made per token is part of a cycle; what is (tasks, exceptions) is rare and can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def leave_with_parent(server: Server, fd: int) -> None:
    """Leave when whoever started us is gone: the other end of this pipe is theirs, and closes with them."""
    loop = asyncio.get_running_loop()

    def closed() -> None:
        loop.remove_reader(fd)
        server.leave()

    loop.add_reader(fd, closed)


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    with listen(settings.host, settings.port) as listener:
        async with (
            open_backend(settings) as backend,
            metrics_at(settings.host, settings.metrics_port, backend.sessions.metrics),
        ):
            host, port = listener.getsockname()[:2]
            who = {"auth": settings.auth_kind, "why": settings.auth_reason}
            get_logger("main").info("serving", host=host, port=port, model=settings.model, **who)
            spare_the_collector()
            make_room_for_sockets(settings.max_sessions)
            server = create_server(backend, settings)
            if parent := os.environ.get(PARENT_FD):
                leave_with_parent(server, int(parent))
            await server.serve(sockets=[listener])
    get_logger("main").info("stopped")  # the last line, so that the log of a process that was killed shows that it was


def main() -> int:
    """Read the settings, serve, and say in one line why if that cannot be."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        prepare_proxies(settings)
        for line in unread():
            get_logger("main").warning(line)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (SettingsError, StoreMisconfigured) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return CANNOT_START
    return 0
