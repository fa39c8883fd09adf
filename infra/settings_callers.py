"""The settings of who may come, how they say who they are, and how much they may have."""

import re
from ipaddress import ip_address
from typing import Literal, Self

from pydantic import BaseModel, Field, SecretStr, model_validator

AuthKind = Literal["supabase", "jwt", "guest", "none"]
LEAST_SECRET_CHARS = 32

HEADER_WORD = re.compile(r"[!-~]+")
"""What may stand for a secret in an HTTP header."""


class CallerSettings(BaseModel):
    """A part of `Settings`."""

    host: str = "127.0.0.1"
    supabase_url: str | None = None
    auth: Literal["", "supabase", "jwt", "guest", "none"] = ""
    auth_none_anywhere: bool = False
    auth_providers: str = ""
    auth_issuer: str | None = None
    auth_audience: str | None = None
    auth_jwks_url: str | None = None
    auth_user_claim: str = "sub"
    supabase_publishable_key: str | None = None
    supabase_jwt_secret: SecretStr | None = None
    session_secret: SecretStr | None = None
    admin_token: SecretStr | None = None
    limit_connections: int = Field(default=600, ge=0)
    limit_requests: int = Field(default=3000, ge=0)
    limit_guests: int = Field(default=1000, ge=0)
    limit_openings: int = Field(default=2000, ge=0)
    limit_messages: int = Field(default=30, ge=0)
    limit_waiting: int = Field(default=64, ge=0)
    limit_sockets: int = Field(default=20, ge=0)
    limit_session_sockets: int = Field(default=20, ge=0)
    limit_live_sessions: int = Field(default=20, ge=0)
    limit_user_tokens: int = Field(default=5_000_000, ge=0)

    @property
    def providers(self) -> list[str]:
        """The OAuth providers that the page offers, by Supabase's names."""
        return [name.strip().lower() for name in self.auth_providers.split(",") if name.strip()]

    @property
    def auth_kind(self) -> AuthKind:
        """How callers say who they are: AUTH, or what the other settings lead to."""
        if self.auth:
            return self.auth
        if self.supabase_url and self.supabase_publishable_key:
            return "supabase"
        return "none" if is_this_machine(self.host) else "guest"

    @property
    def auth_reason(self) -> str:
        """Why it is that, for people."""
        if self.auth:
            return "as AUTH says"
        if self.auth_kind == "supabase":
            return "as SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY are set"
        return f"as HOST is {self.host}" + (": this machine alone" if self.auth_kind == "none" else "")

    @model_validator(mode="after")
    def _callers_are_known(self) -> Self:
        if self.auth == "supabase" and not self.supabase_url:
            raise ValueError("SUPABASE_URL: needed with AUTH=supabase; its tokens are checked with that project's keys")
        if self.auth == "jwt" and not (self.auth_issuer and self.auth_audience):
            raise ValueError("AUTH_ISSUER, AUTH_AUDIENCE: needed with AUTH=jwt; what your tokens say as iss and aud")
        if self.auth == "none" and not self.auth_none_anywhere and not is_this_machine(self.host):
            raise ValueError(
                f"AUTH: none on HOST={self.host} lets anybody in; use guest, supabase or jwt, or say"
                " AUTH_NONE_ANYWHERE=yes if something in front of this server asks"
            )
        for name in ("session_secret", "supabase_jwt_secret", "admin_token"):
            secret: SecretStr | None = getattr(self, name)
            if secret and len(secret.get_secret_value()) < LEAST_SECRET_CHARS:
                raise ValueError(f"{name.upper()}: must have at least {LEAST_SECRET_CHARS} characters, none guessable")
        if self.admin_token and not HEADER_WORD.fullmatch(self.admin_token.get_secret_value()):
            raise ValueError("ADMIN_TOKEN: must be of ASCII letters, digits and signs, without spaces")
        if (self.supabase_publishable_key or "sb_publishable_").startswith("sb_secret_"):
            raise ValueError("SUPABASE_PUBLISHABLE_KEY: this is a secret key; pages get to see this one")
        return self


def is_this_machine(host: str) -> bool:
    """Whether only this machine can connect to a server that listens there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
