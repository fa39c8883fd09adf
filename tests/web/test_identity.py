"""Tokens of an issuer: which are good, what is said of those that are not, and how its keys are known."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from chat.web.identity import Identities, Identity, Unauthorized, open_identities
from chat.web.identity.guest import GuestReader, session_secret
from infra.settings import Settings, SettingsError
from tests.support.sign_in import AUDIENCE, Issuer, running_issuer

ADMIN_TOKEN = "an-operators-own-token-of-32-letters"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of tokens."""
    with running_issuer() as running:
        yield running


@pytest.fixture
async def identities(issuer: Issuer) -> AsyncIterator[Identities]:
    """What trusts it."""
    opened = open_identities(Settings(**issuer.settings(), admin_token=ADMIN_TOKEN))
    yield opened
    await opened.close()


async def refusal(identities: Identities, token: str) -> Unauthorized:
    """Why this token is not good."""
    with pytest.raises(Unauthorized) as raised:
        await identities.of(token)
    assert len(token) < 20 or token not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("kid", ["k1", "k2"])
async def test_a_good_token_says_who_it_is(identities: Identities, issuer: Issuer, kid: str) -> None:
    """By an elliptic key or an RSA one: the user, the end, and the claims."""
    token = issuer.token("ann", kid, plan="gold")
    identity = await identities.of(token)
    assert (identity.user_id, identity.kind, identity.claims["plan"]) == ("ann", "user", "gold")
    assert identity.expires_at == jwt.decode(token, options={"verify_signature": False})["exp"]
    assert issuer.asked == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"iss": "https://elsewhere.example"}, "another issuer"),
        ({"iss": None}, "no `iss`"),
        ({"aud": "somebody"}, "another audience"),
        ({"aud": None}, "no `aud`"),
        ({"exp": -1}, "expired"),
        ({"exp": -3600}, "expired"),
        ({"exp": None}, "no `exp`"),
        ({"exp": "soon"}, "not right"),
        ({"nbf": 120}, "not valid yet"),
        ({"iat": 120}, "not valid yet"),
        ({"user_id": None}, "no `sub`"),
        ({"user_id": ""}, "`sub` is not a user id"),
        ({"user_id": "x" * 10_000}, "`sub` is not a user id"),
        ({"user_id": "ann\nadmin"}, "`sub` is not a user id"),
        ({"user_id": 7}, "`sub` is not a user id"),
        ({"user_id": ["ann"]}, "`sub` is not a user id"),
    ],
)
async def test_a_token_that_says_something_wrong(
    identities: Identities, issuer: Issuer, changed: dict[str, Any], said: str
) -> None:
    """It is refused, and the words say what is wrong without quoting it. Times are seconds from now."""
    now = int(time.time())
    changed = {name: now + it if name != "user_id" and isinstance(it, int) else it for name, it in changed.items()}
    error = await refusal(identities, issuer.token(**changed))
    assert said in str(error)
    assert error.retry_after is None


async def test_a_clock_may_be_off_by_half_a_minute(identities: Identities, issuer: Issuer) -> None:
    """An issuer whose clock is ahead of ours signs tokens that begin in our future."""
    ahead = int(time.time()) + 28
    assert (await identities.of(issuer.token(iat=ahead, nbf=ahead))).user_id == "ann"


async def test_a_token_may_last_for_ever(identities: Identities, issuer: Issuer) -> None:
    """One whose end no clock reaches is good, for as long as clocks go."""
    identity = await identities.of(issuer.token(exp=10**400))
    assert identity.expires_at
    assert identity.expires_at < time.time() + 11 * 365 * 86_400


def encoded(part: bytes) -> str:
    """As a part of a token."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


async def test_a_token_that_is_none(identities: Identities, issuer: Issuer) -> None:
    """Halves, keys, noise, a megabyte, and nothing at all."""
    good = issuer.token()
    head, body, _ = good.split(".")
    for token in (
        "",
        good[: len(good) // 2],
        f"{head}.{body}.",
        f"{head}.{body}",
        "a.b.c",
        "...",
        "\ud83d",
        "é.é.é",
        f"{encoded(b'[]')}.{body}.x",
        f"{encoded(b'null')}.{body}.x",
        "x" * 1_000_000,
        good + "x" * 1_000_000,
    ):
        assert (await refusal(identities, token)).retry_after is None
    assert "API key" in str(await refusal(identities, "sb_publishable_abc"))


async def test_an_algorithm_that_is_not_allowed(identities: Identities, issuer: Issuer) -> None:
    """`none`, and a shared secret where there is none, the public key among them: anybody could sign so."""
    key, _ = issuer.private["k1"]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = jwt.encode(issuer.claims(), "", algorithm="none", headers={"kid": "k1"})
    assert "signed with one of" in str(await refusal(identities, unsigned))
    head = encoded(b'{"alg":"HS256","kid":"k1","typ":"JWT"}')
    body = unsigned.split(".")[1]
    mac = jwt.get_algorithm_by_name("HS256")
    forged = f"{head}.{body}.{encoded(mac.sign(f'{head}.{body}'.encode(), public))}"
    assert "signed with one of" in str(await refusal(identities, forged))


async def test_a_key_signs_by_its_own_algorithm_alone(identities: Identities, issuer: Issuer) -> None:
    """A token signed by one key is not taken in the name of another, of its algorithm or not."""
    for kid, other in (("k1", "k2"), ("k2", "k1")):
        key, algorithm = issuer.private[kid]
        forged = jwt.encode(issuer.claims(), key, algorithm=algorithm, headers={"kid": other})
        assert "not right" in str(await refusal(identities, forged))


async def test_an_unknown_key_is_asked_for_once(identities: Identities, issuer: Issuer) -> None:
    """However many strangers make one up, and however many at once."""
    await identities.of(issuer.token())
    key, algorithm = issuer.private["k1"]
    forged = [
        jwt.encode(issuer.claims(), key, algorithm=algorithm, headers={"kid": f"made-up-{n}"}) for n in range(1000)
    ]
    asked_before = issuer.asked
    answers = await asyncio.gather(*(identities.of(token) for token in forged), return_exceptions=True)
    assert all(isinstance(answer, Unauthorized) for answer in answers)
    assert issuer.asked - asked_before <= 1
    assert (await identities.of(issuer.token())).user_id == "ann"


async def test_a_new_key_is_found(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys change: one that is not known has them read again, once the last reading is half a minute old."""
    identities = open_identities(Settings(**issuer.settings()))
    await identities.of(issuer.token())
    issuer.add("k3")
    assert "does not name" in str(await refusal(identities, issuer.token(kid="k3")))
    monkeypatch.setattr("chat.web.identity.keys.ANEW_SECONDS", 0.0)
    assert (await identities.of(issuer.token(kid="k3"))).user_id == "ann"
    await identities.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (200, b"<html>Sign in to the network</html>"),
        (200, b""),
        (200, b'{"keys": []}'),
        (200, b"[]"),
        (200, b'{"keys": [{"kty": "EC", "kid": "k1"}]}'),
        (200, b'{"keys": "' + b"x" * 300_000 + b'"}'),
    ],
)
async def test_keys_that_cannot_be_read(issuer: Issuer, status: int, body: bytes) -> None:
    """Whoever comes is told to come back, and the log says why."""
    issuer.status, issuer.body = status, body
    identities = open_identities(Settings(**issuer.settings()))
    with capture_logs() as logs:
        error = await refusal(identities, issuer.token())
    assert error.retry_after
    assert [line["event"] for line in logs] == ["keys cannot be read"]
    await identities.close()


async def test_known_keys_are_good_while_the_issuer_is_away(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are known come in; the others are told to come back; and nobody waits for the issuer."""
    identities = open_identities(Settings(**issuer.settings()))
    await identities.of(issuer.token())
    issuer.status = 503
    monkeypatch.setattr("chat.web.identity.keys.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("chat.web.identity.keys.ANEW_SECONDS", 0.0)
    assert (await identities.of(issuer.token())).user_id == "ann"
    issuer.add("k3")
    assert (await refusal(identities, issuer.token(kid="k3"))).retry_after
    assert (await identities.of(issuer.token())).user_id == "ann"
    await identities.close()


async def test_a_slow_issuer_holds_nobody_up_for_long(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up; all who wait for it are told at once."""
    monkeypatch.setattr("chat.web.identity.keys.READ_SECONDS", 0.1)
    issuer.wait.clear()
    identities = open_identities(Settings(**issuer.settings()))
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(refusal(identities, issuer.token()) for _ in range(20)))
    assert all(answer.retry_after for answer in answers)
    issuer.wait.set()
    await identities.close()


async def test_an_unusable_key_does_not_spoil_the_others(identities: Identities, issuer: Issuer) -> None:
    """One of another kind, one without its numbers, and one for encrypting are passed over."""
    odd = [{"kty": "OKP", "crv": "X448", "kid": "a"}, {"kty": "RSA"}, 7, {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]
    issuer.keys = {"keys": [*odd, *issuer.keys["keys"]]}
    assert (await identities.of(issuer.token())).user_id == "ann"


async def test_another_claim_may_be_the_user(issuer: Issuer) -> None:
    """AUTH_USER_CLAIM names it."""
    identities = open_identities(Settings(**issuer.settings(), auth_user_claim="email"))
    assert (await identities.of(issuer.token(email="ann@example.com"))).user_id == "ann@example.com"
    assert "`email` is not a user id" in str(await refusal(identities, issuer.token()))
    await identities.close()


async def test_a_shared_secret_is_for_supabase_alone(issuer: Issuer) -> None:
    """HS256 is taken where SUPABASE_JWT_SECRET is set, with that secret."""
    secret = "a-legacy-secret-of-a-project-of-32-letters"
    claims = issuer.claims(iss=f"{issuer.url}/auth/v1", aud="authenticated", role="authenticated")
    named = {"supabase_url": issuer.url, "supabase_key": "sb_secret_x", "auth": "supabase"}
    token = jwt.encode(claims, secret, algorithm="HS256")
    without = open_identities(Settings(**named))
    assert "ES256, RS256" in str(await refusal(without, token))
    identities = open_identities(Settings(**named, supabase_jwt_secret=secret))
    assert (await identities.of(token)).user_id == "ann"
    assert "not right" in str(await refusal(identities, jwt.encode(claims, secret + "x", algorithm="HS256")))
    service = jwt.encode(claims | {"role": "service_role"}, secret, algorithm="HS256")
    assert (await identities.of(service)).kind == "service"
    await without.close()
    await identities.close()


async def test_the_operators_token(identities: Identities) -> None:
    """It is compared as a whole; nothing near it is anybody's."""
    assert await identities.of(ADMIN_TOKEN) == Identity("admin", "service")
    for token in (ADMIN_TOKEN[:-1], ADMIN_TOKEN + "x", ADMIN_TOKEN.upper()):
        await refusal(identities, token)


def aged(reader: GuestReader, seconds: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A guest's token that was made so long ago."""
    now = time.time()
    monkeypatch.setattr("chat.web.identity.guest.time.time", lambda: now - seconds)
    token, _, _ = reader.sign_in(None)
    monkeypatch.undo()
    return token


async def test_a_guest_stays_the_same_by_renewing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a month of the token's end; later, or by somebody else's token, it is a new one."""
    reader, other = GuestReader("s" * 32), GuestReader("t" * 32)
    token, identity, is_new = reader.sign_in(None)
    assert is_new
    assert (await reader.read(token)) == identity
    again, same, is_new = reader.sign_in(token)
    assert (same.user_id, is_new) == (identity.user_id, False)
    late = aged(reader, 29 * 86_400, monkeypatch)
    with pytest.raises(Unauthorized, match="expired"):
        await reader.read(late)
    assert not reader.sign_in(late)[2]
    assert reader.sign_in(aged(reader, 32 * 86_400, monkeypatch))[2]
    assert reader.sign_in(other.sign_in(None)[0])[2]
    with pytest.raises(Unauthorized, match="not a token of this server"):
        await reader.read(other.sign_in(None)[0])
    assert jwt.decode(again, options={"verify_signature": False})["aud"] != AUDIENCE


def test_the_secret_is_made_once_and_for_its_owners_eyes(tmp_path: Path) -> None:
    """In DATA_DIR, readable by nobody else; one that is too short is refused, and SESSION_SECRET goes before it."""
    settings = Settings(data_dir=tmp_path / "data")
    made = session_secret(settings)
    assert len(made) >= 32
    assert session_secret(settings) == made
    (path,) = (tmp_path / "data").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short")
    with pytest.raises(SettingsError, match="holds no secret"):
        session_secret(settings)
    assert session_secret(Settings(data_dir=tmp_path / "data", session_secret="s" * 32)) == "s" * 32
