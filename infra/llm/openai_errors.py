"""The SDK's errors, sorted by what somebody has to do. Their texts stay out: they quote keys and prompts."""

import email.utils
import time
from typing import Any

import openai

from infra.llm.base import ModelError
from infra.llm.chat_reply import by_code

MOST_RETRY_AFTER_SECONDS = 3600.0

BY_STATUS = {
    401: ("model_key", "The model's service does not accept the server's key."),
    403: ("model_key", "The server's key may not use this model."),
    404: ("model_unknown", "The model's service does not know this model."),
    400: ("model_bad_request", "The model's service did not understand the request."),
    422: ("model_bad_request", "The model's service did not understand the request."),
    413: ("model_refused", "The conversation is too long for the model."),
}
BUSY = {408, 409, 425, 429, 529}


def model_error(error: openai.APIError) -> ModelError:
    """The error that the turn, the log and the user get."""
    if not isinstance(error, openai.APIStatusError):
        # Silence is measured by us: a timeout of the SDK's is that of a connection.
        return ModelError("model_unavailable", "The model's service cannot be reached or failed.", retryable=True)
    status, code = error.status_code, _code(error)
    detail = f"HTTP {status}" + (f", {code}" if code else "")
    found = by_code(code, status)
    if found is None and status in BUSY:
        found = ModelError("model_rate_limited", "The model is busy; try again in a moment.", retryable=True)
    if found is None and status < 500:
        name, message = BY_STATUS.get(status, ("model_refused", "The model's service refused the request."))
        found = ModelError(name, message, retryable=False)
    if found is None:
        found = ModelError("model_unavailable", "The model's service cannot be reached or failed.", retryable=True)
    found.detail = detail
    found.retry_after = _retry_after(error.response.headers) if found.retryable else None
    return found


def _code(error: openai.APIStatusError) -> str:
    """The service's own code, if it is a word."""
    body: Any = error.body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    for name in ("code", "type", "status"):
        code = body.get(name) if isinstance(body, dict) else None
        if isinstance(code, str) and code.replace("_", "").replace("-", "").isalnum() and len(code) <= 60:
            return code
    return ""


def _retry_after(headers: Any) -> float | None:
    """How long to wait, as `Retry-After` or the headers of OpenAI's SDKs have it: seconds, or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if value := headers.get(name):
            try:
                seconds = float(value) * unit
            except ValueError:
                moment = email.utils.parsedate_tz(value)
                seconds = email.utils.mktime_tz(moment) - time.time() if moment else -1.0
            if 0 <= seconds <= MOST_RETRY_AFTER_SECONDS:
                return seconds
    return None
