"""The arrows of the house: who may import whom, read off the source without running it."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"chat": ROOT / "realtime" / "chat", "infra": ROOT / "infra", "functions": ROOT / "functions"}
LAYERS = ("protocol", "conversation", "durability", "sessions", "web")
"""The folders of the container, from the ground up: each may import those before it, and none behind it."""


class Imports(ast.NodeVisitor):
    """The modules a module names in its imports: when it is loaded, and later, inside its functions."""

    def __init__(self) -> None:
        self.at_once: set[str] = set()
        self.later: set[str] = set()
        self._inside = 0

    def _visit_function(self, node: ast.AST) -> None:
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function  # noqa: N815 - ast's names

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b`."""
        self._add(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a import b`, where b may be a module, too."""
        assert node.level == 0, "imports here say the whole name"
        self._add(chain([str(node.module)], (f"{node.module}.{alias.name}" for alias in node.names)))

    def _add(self, names: Iterator[str]) -> None:
        (self.later if self._inside else self.at_once).update(names)


def modules() -> dict[str, ast.Module]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), file.name)
    return found


MODULES = modules()
IMPORTS: dict[str, Imports] = {}
for _name, _tree in MODULES.items():
    IMPORTS[_name] = Imports()
    IMPORTS[_name].visit(_tree)
PURE = [name for name in MODULES if name.startswith(("chat.conversation", "chat.protocol"))]
"""What decides, and never waits."""


def tops(module: str) -> set[str]:
    """The packages and libraries that a module imports, now or later."""
    return {name.split(".")[0] for name in IMPORTS[module].at_once | IMPORTS[module].later}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path that leads back to where it began, or nothing."""
    finished: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for imported in sorted(graph[module]):
                if found := walk(imported, [*path, module]):
                    return found
            finished.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def graph(*, later: bool) -> dict[str, set[str]]:
    """Who imports whom, among our own modules; the imports inside functions only if asked for."""
    return {
        name: ({*found.at_once, *(found.later if later else ())} & MODULES.keys()) - {name}
        for name, found in IMPORTS.items()
    }


def test_there_is_something_to_look_at() -> None:
    """The three packages were found where they are expected, each with what is at its heart."""
    assert {"chat.conversation.machine", "chat.tools.registry", "infra.records", "infra.store.sqlite"} <= MODULES.keys()
    assert {name.split(".")[0] for name in MODULES} == PACKAGES.keys()
    assert "chat.protocol.frames" in graph(later=False)["chat.conversation.machine"]
    assert "infra.store.sqlite" in graph(later=True)["infra.store"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("infra", {"chat", "functions", "realtime"}),
        ("functions", {"chat", "realtime"}),
        ("chat", {"functions", "realtime"}),
    ],
)
def test_the_halves_stand_on_infra_and_never_on_each_other(package: str, forbidden: set[str]) -> None:
    """Not even inside a function; and what both stand on, the local stack included, imports neither."""
    for module in MODULES:
        if module.split(".")[0] == package:
            assert not tops(module) & forbidden, module


@pytest.mark.parametrize("module", MODULES)
def test_the_product_knows_no_tests(module: str) -> None:
    """What is shipped imports nothing of ours that is not."""
    assert not tops(module) & {"tests", "pytest", "hypothesis"}


@pytest.mark.parametrize("later", [False, True], ids=["when loaded", "inside functions too"])
def test_nobody_imports_in_circles(later: bool) -> None:
    """Every module can be read, and loaded, after those it builds on."""
    assert circle(graph(later=later)) == []


@pytest.mark.parametrize("module", PURE)
def test_what_decides_never_waits(module: str) -> None:
    """The rooms of decisions have no event loop, no thread, no socket, and nothing they could wait for."""
    assert not tops(module) & {"asyncio", "threading", "socket", "time", "starlette", "uvicorn", "sqlite3"}
    waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    assert not [node for node in ast.walk(MODULES[module]) if isinstance(node, waits)]


def test_what_decides_builds_on_nothing_that_waits() -> None:
    """Of chat, the rooms of decisions import each other alone."""
    for module in PURE:
        assert {name for name in graph(later=True)[module] if name.startswith("chat.")} <= set(PURE), module


@pytest.mark.parametrize("layer", LAYERS)
def test_the_folders_build_on_those_below(layer: str) -> None:
    """No arrow goes up: what is served builds on what is live, on what lasts, on what decides, on what is said."""
    above = tuple(f"chat.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :])
    for module, imported in graph(later=True).items():
        if module.startswith(f"chat.{layer}."):
            assert not [name for name in imported if name.startswith(above)], module
