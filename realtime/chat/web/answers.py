"""What the HTTP routes answer with, for `/openapi.json`. Nothing is checked against it when it is sent."""

from typing import Any, Literal

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, create_model

from infra.records import Event, Session, SessionListed


class Health(BaseModel):
    """Whether this container can serve, and what fails if not."""

    status: Literal["healthy", "unhealthy"]
    service: str
    version: str
    features: dict[str, bool]
    failing: list[str] | None = None


class Liveness(BaseModel):
    """Whether this container takes clients."""

    status: Literal["live", "draining"]


class Problem(BaseModel):
    """What was wrong, in words."""

    detail: str


async def not_acceptable(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that says something wrong: where, and what. FastAPI's own repeats what was said.

    That may be a secret, or half of a surrogate pair, which no answer can carry.
    """
    assert isinstance(error, RequestValidationError)
    problems = [{name: each[name] for name in ("loc", "msg", "type")} for each in error.errors()]
    return JSONResponse({"detail": problems}, 422)


def _like(struct: type[msgspec.Struct], **more: Any) -> type[BaseModel]:
    """A model with the fields of a record, and these."""
    fields: dict[str, Any] = {each.name: (each.type, ...) for each in msgspec.structs.fields(struct)}
    return create_model(struct.__name__, __doc__=struct.__doc__, **fields | more)


SessionAnswer = _like(Session, live=(bool, ...), summarised=(bool, ...))
EventAnswers: Any = list[_like(Event)]  # type: ignore[misc]

SessionsAnswer: Any = list[_like(SessionListed, live=(bool, ...))]  # type: ignore[misc]

COMMON: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 401, 429, 503)}
"""A caller who cannot be told, or asks too often, and a store that does not answer."""
OPERATORS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (401, 403, 429, 503)}
"""A caller who is not the operator."""
UNKNOWN = COMMON | {404: {"model": Problem}}
"""The same, and a session that is not there, or is somebody else's."""
