"""Visitors without an account: this server signs them in itself, so that a session belongs to one browser."""

import os
import secrets
import time
from pathlib import Path
from typing import Any

import jwt

from chat.web.identity.base import Identity, Unauthorized
from infra.settings import Settings, SettingsError
from infra.telemetry import get_logger

GUEST_SECONDS = 3600
"""How long a guest's token is good. It is renewed by the call that made it."""
RENEW_SECONDS = 30 * 86_400
"""For how long after that it can still be exchanged for a new one of the same guest: somebody who comes back."""
ISSUER = "realtime-ai-backend"
LEAST_SECRET_CHARS = 32
SECRET_FILE = "session-secret"

log = get_logger("identity")


class GuestReader:
    """A `TokenReader` of the tokens that it makes, signed with a secret (HS256)."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def sign_in(self, token: str | None) -> tuple[str, Identity, bool]:
        """A new token, whose it is, and whether they are new: they are not if `token` is theirs, and not too old."""
        known = self._known(token)
        user_id = known or f"guest-{secrets.token_urlsafe(16)}"
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": ISSUER, "sub": user_id, "iat": now, "exp": now + GUEST_SECONDS}
        signed = jwt.encode(claims, self._secret, algorithm="HS256")
        return signed, Identity(user_id, "guest", float(now + GUEST_SECONDS), claims), known is None

    async def read(self, token: str) -> Identity:
        """See `TokenReader.read`."""
        try:
            claims = self._claims(token, leeway=0)
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired.") from error
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Unauthorized("This is not a token of this server.") from error
        return Identity(claims["sub"], "guest", float(claims["exp"]), claims)

    async def close(self) -> None:
        """See `TokenReader.close`."""

    def _known(self, token: str | None) -> str | None:
        try:
            return str(self._claims(token, leeway=RENEW_SECONDS)["sub"]) if token else None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            return None

    def _claims(self, token: str, leeway: int) -> dict[str, Any]:
        return jwt.decode(
            token,
            self._secret,
            algorithms=["HS256"],
            audience=ISSUER,
            issuer=ISSUER,
            leeway=leeway,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )


def session_secret(settings: Settings) -> str:
    """SESSION_SECRET, or one that is made once and kept in DATA_DIR, for its owner's eyes only.

    Raises:
        SettingsError: it cannot be kept there, or what is there is none.
    """
    if settings.session_secret:
        return settings.session_secret.get_secret_value()
    path = settings.data_dir / SECRET_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path)
        kept = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"DATA_DIR: cannot keep the session secret in {path}: {error}") from error
    if len(kept) < LEAST_SECRET_CHARS:
        raise SettingsError(f"DATA_DIR: {path} holds no secret of {LEAST_SECRET_CHARS} characters; remove it")
    return kept


def _make(path: Path) -> None:
    """Make the file, whole or not at all, unless it is there: another process may be making it, too."""
    if path.exists():
        return
    made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(made, path)
    except FileExistsError:
        return
    finally:
        made.unlink()
    log.info("session secret made", path=str(path))
