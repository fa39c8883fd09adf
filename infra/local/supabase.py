"""A Supabase for this machine without Docker: a real PostgreSQL, and `@supabase/lite` in front of it.

`make supabase` runs it on a folder that lasts, and prints the settings; the tests run it on a folder of their own.
It needs Node (`npm ci` brings the servers) and a PostgreSQL.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from infra.local.postgres import Postgres
from infra.local.server import CannotStart, Server, is_listening
from infra.settings import SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[2]
STANDALONE = ROOT / "infra" / "supabase" / "standalone.sql"
LITE = ROOT / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"
CLI = ROOT / "node_modules" / ".bin" / "supabase"
API_PORT, DATABASE_PORT = 54321, 54322
"""Those of `supabase start`."""
WELCOME = """
A local Supabase is ready. Put these into .env, or before `make run`:

  SUPABASE_URL={url}
  SUPABASE_KEY={key}

For a page where people sign in, these as well:

  SUPABASE_PUBLISHABLE_KEY={publishable}
  SUPABASE_JWT_SECRET={secret}

Its database: {database}
Ctrl-C ends it; its data stays.
"""


def find_node() -> str:
    """The path of Node, when its packages are there too.

    Raises:
        CannotStart: one of them is not.
    """
    node = shutil.which("node")
    if not node or not LITE.exists() or not CLI.exists():
        raise CannotStart("Node and its packages are needed: install Node 20, then `npm ci`")
    return node


class Lite(Server):
    """`@supabase/lite` over one database: the REST and auth interfaces of Supabase."""

    def __init__(self, folder: Path, database_url: str, port: int) -> None:
        super().__init__(port, folder / "lite.log")
        self._folder = folder
        self._database_url = database_url
        self.url = f"http://127.0.0.1:{port}"
        self.token_seconds = 3600
        """How long the tokens last that it gives to people who sign in."""
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
            f'[auth]\nenabled = true\njwt_expiry = {self.token_seconds}\njwt_secret = "{self.jwt_secret}"\n'
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.supabase", description="Run a Supabase here.")
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
        keys = {"key": api.service_key, "publishable": api.anon_key, "secret": api.jwt_secret}
        print(WELCOME.format(url=api.url, database=database.url(), **keys), flush=True)
        stopping.wait()
    except (CannotStart, SettingsError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    finally:
        for server in reversed(started):
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
