"""The SDKs' errors, sorted by what somebody has to do. Their texts stay out: they quote keys and prompts."""

import email.utils
import time
from typing import Any

from infra.llm.base import ModelError

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
QUOTA = ("insufficient_quota", "billing", "credit", "quota_exceeded", "payment")


def model_error(error: Exception) -> ModelError:
    """The error that the turn, the log and the user get for one of an SDK: OpenAI's and Anthropic's are alike."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        # Silence is measured by us: a timeout of the SDK's is that of a connection.
        return unavailable()
    response: Any = error.response  # type: ignore[attr-defined]
    code = _code(getattr(error, "body", None))
    no_credit = "credit balance" in response.text[:2000].lower()  # Anthropic says it with a 400, and in words alone
    found = by_code("billing" if no_credit else code, status)
    if found is None and status in BUSY:
        found = ModelError("model_rate_limited", "The model is busy; try again in a moment.", retryable=True)
    if found is None and status < 500:
        name, message = BY_STATUS.get(status, ("model_refused", "The model's service refused the request."))
        found = ModelError(name, message, retryable=False)
    found = found or unavailable()
    found.detail = f"HTTP {status}" + (f", {code}" if code else "")
    found.retry_after = _retry_after(response.headers) if found.retryable else None
    return found


def failure(error: Any) -> ModelError:
    """The error that stands in a stream, by its code."""
    code = _code({"error": error}) if isinstance(error, dict) else str(error)
    found = by_code(code, 0) or unavailable()
    found.detail = code
    return found


def by_code(code: str, status: int) -> ModelError | None:
    """The error that a service's code means whatever its status is; None if it says nothing more."""
    code = code.lower()
    if any(word in code for word in QUOTA) or status == 402:
        return ModelError("model_quota", "The model's account has no credit left.", retryable=False)
    if "rate_limit" in code or "overloaded" in code or code == "429":
        return ModelError("model_rate_limited", "The model is busy; try again in a moment.", retryable=True)
    if "context_length" in code or "content_filter" in code or "safety" in code:
        return ModelError("model_refused", "The model's service refused to answer this.", retryable=False)
    return None


def unavailable() -> ModelError:
    """The service cannot be reached, or says no more than that it failed."""
    return ModelError("model_unavailable", "The model's service cannot be reached or failed.", retryable=True)


def broke_off() -> ModelError:
    """The reply ended without an end."""
    return ModelError("model_unavailable", "The model's answer broke off.", retryable=True)


def _code(body: Any) -> str:
    """The service's own code, if it is a word."""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    for name in ("code", "type", "status"):
        code = body.get(name) if isinstance(body, dict) else None
        if isinstance(code, int):
            return str(code)
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
