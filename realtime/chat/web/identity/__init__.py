"""Identity: who calls, by one of four ways, chosen by AUTH."""

import hmac

from chat.web.identity.base import Identity, TokenReader, Unauthorized
from infra.settings import Settings

__all__ = ["Identities", "Identity", "Unauthorized", "open_identities"]

SUPABASE_AUDIENCE = "authenticated"
ADMIN = "admin"
"""The operator's user id, by ADMIN_TOKEN."""


class Identities:
    """Tells who calls from what they show."""

    def __init__(self, reader: TokenReader | None, admin_token: str | None = None) -> None:
        """Without a `reader` nobody need show anything: AUTH is `none`."""
        self._reader = reader
        self._admin_token = (admin_token or "").encode()

    @property
    def are_asked_for(self) -> bool:
        """Whether callers must show a token."""
        return self._reader is not None

    async def of(self, token: str) -> Identity:
        """Whose token it is.

        Raises:
            Unauthorized: it is not good, or cannot be checked now.
        """
        if self._admin_token and hmac.compare_digest(self._admin_token, token.encode("utf-8", "replace")):
            return Identity(ADMIN, "service")
        if not token:
            raise Unauthorized("A token is needed here.")
        if self._reader is None:
            raise Unauthorized("This server takes no tokens: AUTH is none.")
        return await self._reader.read(token)

    def sign_in_guest(self, token: str | None) -> tuple[str, Identity, bool] | None:
        """A guest's new token, whose it is, and whether the guest is new; None where AUTH is not `guest`."""
        from chat.web.identity.guest import GuestReader

        return self._reader.sign_in(token) if isinstance(self._reader, GuestReader) else None

    async def close(self) -> None:
        """Let go of connections."""
        if self._reader:
            await self._reader.close()


def open_identities(settings: Settings) -> Identities:
    """The way that the settings choose. Nothing is asked of anybody yet.

    Raises:
        SettingsError: the secret for guests cannot be kept.
    """
    admin = settings.admin_token.get_secret_value() if settings.admin_token else None
    return Identities(_reader(settings), admin)


def _reader(settings: Settings) -> TokenReader | None:
    if settings.auth_kind == "none":
        return None
    if settings.auth_kind == "guest":
        from chat.web.identity.guest import GuestReader, session_secret

        return GuestReader(session_secret(settings))
    from chat.web.identity.jwt import OF_SUPABASE, JwtReader, TokenRules
    from chat.web.identity.keys import Keys

    if settings.auth_kind == "supabase":
        base = f"{(settings.supabase_url or '').rstrip('/')}/auth/v1"
        secret = settings.supabase_jwt_secret.get_secret_value() if settings.supabase_jwt_secret else None
        rules = TokenRules(base, SUPABASE_AUDIENCE, algorithms=OF_SUPABASE, secret=secret)
        return JwtReader(rules, Keys(f"{base}/.well-known/jwks.json"))
    issuer, audience = settings.auth_issuer or "", settings.auth_audience or ""
    keys = Keys(settings.auth_jwks_url or f"{issuer.rstrip('/')}/.well-known/jwks.json")
    return JwtReader(TokenRules(issuer, audience, user_claim=settings.auth_user_claim), keys)
