"""What every answer tells browsers: load nothing from elsewhere, be framed by nobody, guess no types."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.settings import Settings

YEAR = 31_536_000


class SafeHeaders:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._policy = content_security_policy(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and add the headers to what is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = self._policy
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                if scope["scheme"] == "https":
                    headers["strict-transport-security"] = f"max-age={YEAR}"
            await send(message)

        await self._app(scope, receive, send_safely)


def content_security_policy(settings: Settings) -> str:
    """Everything from this server alone; where people sign in with Supabase, their page talks to it, too."""
    talks_to = ["'self'"]
    if settings.auth_kind == "supabase":
        talks_to.append((settings.supabase_url or "").rstrip("/"))
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            f"connect-src {' '.join(talks_to)}",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )
