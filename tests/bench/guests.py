"""The clients of a measurement, as strangers: each shows a guest's token, and no limit is far enough to be met."""

import time

import jwt

from chat.web.identity.guest import ISSUER

SECRET = "the-secret-of-a-measurement-and-of-nothing-else"
FAR = "1000000"
SETTINGS = {
    "AUTH": "guest",
    "SESSION_SECRET": SECRET,
    "LIMIT_CONNECTIONS": FAR,
    "LIMIT_REQUESTS": FAR,
    "LIMIT_OPENINGS": FAR,
    "LIMIT_WAITING": FAR,
    "LIMIT_MESSAGES": FAR,
    "LIMIT_SOCKETS": FAR,
    "LIMIT_SESSION_SOCKETS": FAR,
    "LIMIT_LIVE_SESSIONS": FAR,
    "LIMIT_USER_TOKENS": "1000000000",
}
"""Those of a server for guests, with every limit on."""


def token_of(user_id: str) -> str:
    """The token of this guest, as the server would have made it."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": ISSUER, "sub": user_id, "iat": now, "exp": now + 3600}
    return jwt.encode(claims, SECRET, algorithm="HS256")
