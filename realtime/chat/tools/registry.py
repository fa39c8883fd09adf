"""What a tool is, and how a model's call becomes a Python call.

A tool is an async function with type hints, marked `@tool`. Its JSON Schema, its description for the model and
the check of its arguments all come from the signature and the docstring. A parameter hinted `ToolContext` is
filled in by the server; the model does not know of it.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from infra.llm import ToolSpec
from infra.store import Store

MAX_RESULT_BYTES = 64 * 1024
"""The largest result, as JSON. It goes to the model, to every client and to the store; more would help none of them."""


MOST_ARGUMENT_CHARS = 64 * 1024
"""The longest arguments that a tool is given, as JSON text."""
MOST_PROBLEM_CHARS = 2_000
"""As much of a tool's error as is told."""


class ToolError(Exception):
    """A tool cannot help, for a reason the model should read."""


class ToolContext(msgspec.Struct, frozen=True):
    """Who is asking, and what a tool may use to answer."""

    session_id: str
    user_id: str
    store: Store
    settled: Callable[[], Awaitable[None]]
    """Wait until the store holds everything said so far: writes are behind the conversation."""


class Tool(msgspec.Struct, frozen=True):
    """A function a model may call."""

    spec: ToolSpec
    function: Callable[..., Awaitable[Any]]
    arguments: type[BaseModel]
    context_parameter: str | None

    async def call(self, arguments: str, context: ToolContext) -> Any:
        """Check the model's arguments (JSON text), run, and return the result as plain JSON values.

        Raises:
            ToolError: the arguments do not fit, or the result is not JSON or is too long.
        """
        try:
            checked = self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            raise ToolError(f"bad arguments: {_explain(error)}") from None
        given = {name: getattr(checked, name) for name in self.arguments.model_fields}
        if self.context_parameter:
            given[self.context_parameter] = context
        result = await self.function(**given)
        try:
            encoded = msgspec.json.encode(result)
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"the result is not JSON: {error}") from None
        if len(encoded) > MAX_RESULT_BYTES:
            raise ToolError(f"the result has {len(encoded)} bytes; the most is {MAX_RESULT_BYTES}")
        return msgspec.json.decode(encoded)


def tool(function: Callable[..., Awaitable[Any]]) -> Tool:
    """Make an async function a tool.

    Raises:
        TypeError: it is not async, has no docstring, or a parameter has no type hint.
    """
    name = getattr(function, "__name__", "?")
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"tool {name} must be an async function")
    if not function.__doc__:
        raise TypeError(f"tool {name} needs a docstring: it is what the model reads")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    context_parameter = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: parameter {parameter.name} needs a type hint")
        if hints[parameter.name] is ToolContext:
            context_parameter = parameter.name
        else:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    spec = ToolSpec(name, inspect.cleandoc(function.__doc__), _schema(arguments))
    return Tool(spec, function, arguments, context_parameter)


class Registry:
    """The tools on offer, by name."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for each in tools:
            if each.spec.name in self._tools:
                raise ValueError(f"two tools are named {each.spec.name}")
            self._tools[each.spec.name] = each
        self._specs = [each.spec for each in self._tools.values()]

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def specs(self) -> list[ToolSpec]:
        """What the model is told."""
        return self._specs

    async def call(self, name: str, arguments: str, context: ToolContext) -> Any:
        """Run the tool of this name; see `Tool.call`.

        Raises:
            ToolError: there is no such tool, or it cannot help.
        """
        if name not in self._tools:
            raise ToolError(f"there is no tool named {name!r}; there are: {', '.join(self._tools) or 'none'}")
        return await self._tools[name].call(arguments, context)


def _schema(arguments: type[BaseModel]) -> dict[str, Any]:
    schema = arguments.model_json_schema()
    schema.pop("title", None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return schema


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in error.errors(include_input=False, include_url=False)
    )
