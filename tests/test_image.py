"""The container's image, as far as it can be told without building one.

Its Dockerfile is read, and what that copies is laid into an empty folder and started there as the image would start it.
"""

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import packages_distributions, requires
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import pytest

from chat.web.api import VERSION
from infra.settings import load_settings
from tests.support.client import ChatClient
from tests.support.sign_in import a_guest
from tests.support.supabase import free_port

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "realtime" / "requirements.txt"
BIG = {".git", ".venv", "node_modules"}
"""Folders of thousands of files, which no pattern speaks of."""
PATIENCE = 30.0
"""Seconds the server may take to start or to end."""


class Stage:
    """One `FROM` and what follows it."""

    def __init__(self, base: str, arguments: dict[str, str]) -> None:
        self.base = base
        self.steps: list[tuple[str, str]] = []
        self.arguments = dict(arguments)

    def all(self, instruction: str) -> list[str]:
        """What stands behind each such instruction, in their order."""
        return [rest for name, rest in self.steps if name == instruction]

    def last(self, instruction: str) -> str:
        """What stands behind the one that counts."""
        return self.all(instruction)[-1]

    def pairs(self, instruction: str) -> dict[str, str]:
        """The names and values of every `ENV` or `LABEL`, with arguments put in."""
        words = [word.partition("=") for rest in self.all(instruction) for word in shlex.split(rest)]
        return {name: Template(value).safe_substitute(self.arguments) for name, _, value in words}

    def copied(self) -> list[tuple[str, str]]:
        """From where in the context to where in the image."""
        copies = [shlex.split(rest) for rest in self.all("COPY") if not rest.startswith("--from=")]
        return [(source, target) for source, target in copies]


def dockerfile() -> list[Stage]:
    """The stages, the one that is shipped last."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "realtime" / "Dockerfile").read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            stages.append(Stage(Template(rest.split()[0]).substitute(arguments), arguments))
        elif name == "ARG" and "=" in rest:
            argument, _, default = rest.partition("=")
            (stages[-1].arguments if stages else arguments)[argument] = default
        if stages:
            stages[-1].steps.append((name, rest))
    return stages


def let_in() -> list[str]:
    """The files of the repository that `.dockerignore` lets into the context: the last pattern that fits decides."""
    rules = []
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            assert "**" not in line, "not every builder looks into the folders that only this lets in"
            rules.append((line.removeprefix("!"), line.startswith("!")))

    def is_in(path: PurePosixPath) -> bool:
        allowed = True
        for pattern, allow in rules:
            if any(_fits(pattern, part) for part in (path, *path.parents[:-1])):
                allowed = allow
        return allowed

    paths: list[PurePosixPath] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = set(folders) - BIG
        paths += [PurePosixPath(folder).relative_to(ROOT) / name for name in names]
    return [str(path) for path in paths if is_in(path)]


def _fits(pattern: str, path: PurePosixPath) -> bool:
    """Whether the pattern is of exactly this path; `*` stays within one folder, as Docker's does."""
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def copies() -> Iterator[tuple[Path, PurePosixPath]]:
    """Every file that is copied from the context, and where it lies in the image."""
    files = let_in()
    for stage in dockerfile():
        for source, target in stage.copied():
            for file in files:
                if file == source:
                    yield ROOT / file, PurePosixPath(target)
                elif file.startswith(f"{source}/"):
                    yield ROOT / file, PurePosixPath(target) / file.removeprefix(f"{source}/")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with what the image has beside Python and its packages."""
    for file, target in copies():
        place = tmp_path / target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return tmp_path


def files_below(folder: Path) -> set[str]:
    """Every file below, by its path from there."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def health_check() -> list[str]:
    """Its command."""
    command: list[str] = json.loads(dockerfile()[-1].last("HEALTHCHECK").partition("CMD ")[2])
    return command


class Started:
    """The server, and what else is run in its surroundings."""

    def __init__(self, environment: dict[str, str], process: asyncio.subprocess.Process) -> None:
        self.environment = environment
        self.process = process

    async def logged(self, event: str) -> dict[str, Any]:
        """Read its log up to this line; the line."""
        assert self.process.stderr
        async with asyncio.timeout(PATIENCE):
            async for line in self.process.stderr:
                entry: dict[str, Any] = json.loads(line)
                if entry["event"] == event:
                    return entry
        raise AssertionError("it has ended")

    async def serving(self) -> str:
        """Wait until it serves; its address."""
        self.environment["PORT"] = str((await self.logged("serving"))["port"])
        return f"ws://127.0.0.1:{self.environment['PORT']}"

    async def is_healthy(self) -> bool:
        """What the image's own check says."""
        check = await asyncio.create_subprocess_exec(
            sys.executable, *health_check()[1:], env=self.environment, stderr=asyncio.subprocess.DEVNULL
        )
        return await check.wait() == 0

    async def ended(self) -> tuple[int, str]:
        """Wait for its end; its exit code, and the rest of its log."""
        _, log = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


@asynccontextmanager
async def started(image: Path, **settings: str) -> AsyncIterator[Started]:
    """The image's CMD in this folder, as its ENV and WORKDIR say; Python alone is the tests' own."""
    stage = dockerfile()[-1]
    environment = {name: re.sub(r"(?<![^:])/", f"{image}/", value) for name, value in stage.pairs("ENV").items()}
    environment |= settings
    command: list[str] = json.loads(stage.last("CMD"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command[1:],
        cwd=image / stage.last("WORKDIR").removeprefix("/"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Started(environment, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_its_base_is_pinned() -> None:
    """Every stage stands on the same base, which names its registry and a full version, never `latest`."""
    bases = {stage.base for stage in dockerfile()}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", bases.pop())


def test_what_builds_it_is_not_in_it() -> None:
    """Packages are installed in a stage of their own, as wheels only; pip and the compiler's needs stay there."""
    *before, shipped = dockerfile()
    assert before
    installing = [rest for stage in before for rest in stage.all("RUN") if " install " in rest]
    assert installing
    assert all("--only-binary :all:" in rest for rest in installing)
    assert all("--without-pip" in rest for rest in installing)
    assert not [rest for rest in shipped.all("RUN") if "pip" in rest or "apt" in rest]
    assert not shipped.copied(), "everything comes from the stage that compiled it"


def test_it_runs_as_nobody_in_particular() -> None:
    """The last user is a number other than root's, so that an orchestrator can tell; /data is theirs."""
    shipped = dockerfile()[-1]
    user, _, group = shipped.last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert shipped.last("VOLUME") == shipped.pairs("ENV")["DATA_DIR"]
    names = [name for name, _ in shipped.steps]
    assert names.index("RUN") < names.index("VOLUME"), "what is done to a volume later is lost"
    assert f"--owner {user} --group {group}" in shipped.last("RUN")


def test_signals_reach_the_server() -> None:
    """CMD is in exec form, Python itself, so that no shell stands between SIGTERM and the drain."""
    shipped = dockerfile()[-1]
    assert json.loads(shipped.last("CMD")) == ["python", "-m", "chat"]
    assert not shipped.all("ENTRYPOINT")
    assert shipped.last("STOPSIGNAL") == "SIGTERM"


def test_its_health_check_needs_nothing_but_python() -> None:
    """It is in exec form, and asks on the PORT of its surroundings; no shell and no curl takes part."""
    python, *arguments = health_check()
    assert python == "python"
    assert "os.environ['PORT']" in arguments[-1]


def test_its_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ENV sets is read: reachable from outside, logs for machines, data on the volume."""
    for name, value in dockerfile()[-1].pairs("ENV").items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    assert (settings.host, settings.port, settings.log_format) == ("0.0.0.0", 8000, "json")
    assert settings.data_dir == Path("/data")
    assert dockerfile()[-1].last("EXPOSE") == "8000"


def test_its_labels_say_what_it_is() -> None:
    """Title, licence and base stand in OCI's labels, and the version is the one that /health tells."""
    shipped = dockerfile()[-1]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in shipped.pairs("LABEL").items()}
    assert labels["version"] == VERSION
    assert labels["base.name"] == shipped.base
    assert labels["licenses"] == (ROOT / "LICENSE").read_text().split()[0]


def test_the_context_is_what_is_copied() -> None:
    """Every COPY finds something, and `.dockerignore` lets in nothing else: no tests, no functions, no secrets."""
    for stage in dockerfile():
        for source, _ in stage.copied():
            assert (ROOT / source).exists()
            assert [file for file in let_in() if file == source or file.startswith(f"{source}/")], source
    assert sorted(ROOT / file for file in let_in()) == sorted(file for file, _ in copies())
    kinds = {Path(file).suffix for file in let_in()}
    assert kinds == {".py", ".sql", ".css", ".html", ".js", ".mjs", ".toml", ".lock"}
    assert not [file for file in let_in() if file.startswith(("tests/", "functions/"))]


def test_all_of_the_page_and_of_the_container_is_let_in() -> None:
    """No file of realtime/chat or frontend/ is forgotten, in whatever folder; the README's screenshots stay behind."""
    theirs = [file for top in ("realtime/chat", "frontend") for file in (ROOT / top).rglob("*")]
    wanted = {str(file.relative_to(ROOT)) for file in theirs if file.is_file() and file.suffix not in (".pyc", ".png")}
    assert wanted == {file for file in let_in() if file.startswith(("realtime/chat/", "frontend/"))}


def test_what_it_imports_is_in_it(image: Path) -> None:
    """Whatever any of its modules imports, at once or later, is a file that is copied, or an installed package."""
    homes = [image / path.removeprefix("/") for path in dockerfile()[-1].pairs("ENV")["PYTHONPATH"].split(":")]
    installed, distributions = _installed(), packages_distributions()
    for file in image.rglob("*.py"):
        for module in _imports(file):
            top = module.partition(".")[0]
            if top in ("chat", "infra"):
                places = [home / module.replace(".", "/") for home in homes]
                found = any(place.with_suffix(".py").exists() or (place / "__init__.py").exists() for place in places)
            else:
                found = top in sys.stdlib_module_names or bool(installed & set(map(_plain, distributions[top])))
            assert found, f"{file.relative_to(image)} imports {module}"


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not used here"
            yield node.module


def _installed() -> set[str]:
    """What the image's requirements bring, those of theirs among them."""
    names = [_plain(line) for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            names += [_plain(line) for line in requires(name) or () if ";" not in line]
    return found


def _plain(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_wheel_is_known_by_its_hash() -> None:
    """The lock pins what the requirements pin and all that those need, each with hashes; `make lock` writes it."""
    lock = (ROOT / "realtime" / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", lock, flags=re.MULTILINE))
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", REQUIREMENTS.read_text(), flags=re.MULTILINE))
    assert pinned.items() <= locked.items()
    assert _installed() <= set(locked)
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:])


async def test_what_is_copied_starts_answers_and_drains(image: Path) -> None:
    """Alone in a folder it serves whoever signs in, if as a guest, and nobody else.

    On SIGTERM it ends the reply, healthy still, says goodbye, and exits with 0.
    """
    copied = files_below(image)
    async with started(image, PORT="0", DRAIN_SECONDS="3600") as server:
        url = await server.serving()
        stranger = await ChatClient.connect(url)
        await stranger.send({"type": "ping"})
        assert await stranger.closed() == 4401
        client = await ChatClient.connect(url, token=(await a_guest(url)).token)
        assert await server.is_healthy()
        await client.say("Write 2000 words")
        token = await client.until("token")
        server.process.send_signal(signal.SIGTERM)
        await server.logged("draining")
        assert await server.is_healthy()
        await client.send({"type": "cancel", "turn_id": token["turn_id"]})
        assert await client.closed() == 1012
        code, log = await server.ended()
        assert code == 0, log
        assert json.loads(log.splitlines()[-1])["event"] == "stopped"
    told = client.types()
    assert set(told[told.index("done") :]) == {"done", "saved", "goodbye"}, log
    assert told[-1] == "goodbye"
    written = files_below(image) - copied
    assert written
    assert not [file for file in written if not file.startswith("data/")], "the root is to be read-only"


async def test_a_server_that_cannot_start_is_never_healthy(image: Path) -> None:
    """Its check says no before and after it ends, which it does with a line and the code that say why."""
    async with started(image, PORT=str(free_port()), DATA_DIR="/dev/null/data") as server:
        assert not await server.is_healthy()
        code, log = await server.ended()
        assert (code, log.split(":")[0]) == (2, "cannot start"), log
        assert not await server.is_healthy()
