"""Access tokens of an issuer: Supabase Auth, or any other that signs JSON Web Tokens (RFC 7519)."""

import time
from collections.abc import Sequence
from typing import Any

import jwt

from chat.web.identity.base import MOST_TOKEN_CHARS, Identity, Unauthorized, is_user_id
from chat.web.identity.keys import Keys
from infra.telemetry import get_logger

ASYMMETRIC = ("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA")
"""Whoever can check these cannot sign: HS256 is taken only where its secret is set."""
OF_SUPABASE = ("ES256", "RS256")
LONGEST_SECONDS = 10 * 365 * 86_400
SKEW_SECONDS = 30
"""How far the issuer's clock may be ahead of ours: a token of this moment would else be one of the future."""

log = get_logger("identity")


class TokenRules:
    """What a token must say."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        user_claim: str = "sub",
        algorithms: Sequence[str] = ASYMMETRIC,
        secret: str | None = None,
    ) -> None:
        """With a `secret`, tokens signed by it (HS256) are good as well."""
        self.issuer = issuer
        self.audience = audience
        self.user_claim = user_claim
        self.algorithms = tuple(algorithms)
        self.secret = secret


class JwtReader:
    """A `TokenReader` of one issuer's tokens."""

    def __init__(self, rules: TokenRules, keys: Keys) -> None:
        self._rules = rules
        self._keys = keys

    async def read(self, token: str) -> Identity:
        """See `TokenReader.read`."""
        if token.startswith("sb_"):
            raise Unauthorized("This is an API key of Supabase, and no user's access token.")
        if len(token) > MOST_TOKEN_CHARS:
            raise Unauthorized("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthorized("The token is not a JSON Web Token.") from error
        claims = self._checked(token, *await self._key(header))
        user_id = claims.get(self._rules.user_claim)
        if not is_user_id(user_id):
            raise Unauthorized(f"The token's `{self._rules.user_claim}` is not a user id of 1 to 128 characters.")
        kind = "service" if claims.get("role") == "service_role" else "user"
        ends = min(claims["exp"], time.time() + LONGEST_SECONDS)  # nobody's clock goes further
        return Identity(user_id, kind, float(ends), claims)  # type: ignore[arg-type]

    async def close(self) -> None:
        """See `TokenReader.close`."""
        await self._keys.close()

    async def _key(self, header: dict[str, Any]) -> tuple[jwt.PyJWK | str, str]:
        """What a token with this header is checked with, and the only algorithm it may have used."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm == "HS256" and self._rules.secret:
            return self._rules.secret, "HS256"
        if algorithm not in self._rules.algorithms:
            raise Unauthorized(f"A token must be signed with one of {', '.join(self._rules.algorithms)}.")
        return await self._keys.key(kid if isinstance(kid, str) else None), algorithm

    def _checked(self, token: str, key: jwt.PyJWK | str, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=SKEW_SECONDS,
                # A shared secret is its issuer's alone, and says who signed: older Supabase servers name no issuer.
                options={
                    "require": ["exp", "aud", "sub"] if isinstance(key, str) else ["exp", "iss", "aud", "sub"],
                    "verify_sub": False,
                    "verify_iss": not isinstance(key, str),
                },
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired.") from error
        except jwt.MissingRequiredClaimError as error:
            raise Unauthorized(f"The token has no `{error.claim}`.") from error
        except jwt.InvalidIssuerError as error:
            raise Unauthorized("The token is of another issuer.") from error
        except jwt.InvalidAudienceError as error:
            raise Unauthorized("The token is for another audience.") from error
        except jwt.ImmatureSignatureError as error:
            raise Unauthorized("The token is not valid yet.") from error
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Unauthorized("The token's signature or form is not right.") from error
        if claims.get("iss", self._rules.issuer) != self._rules.issuer:
            raise Unauthorized("The token is of another issuer.")
        if not isinstance(claims["exp"], int | float) or claims["exp"] <= time.time():  # the leeway is for its start
            raise Unauthorized("The token has expired.")
        return claims
