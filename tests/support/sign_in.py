"""Signing in, for tests: as a guest of the server's own, or by the tokens of an issuer that a test runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "chat"


@dataclass(frozen=True)
class Guest:
    """Somebody whom the server signed in itself."""

    token: str
    user_id: str
    expires_at: str


async def a_guest(base_url: str, token: str | None = None) -> Guest:
    """A new guest of the server there, or the one whose token this is."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=base_url.replace("ws", "http", 1), trust_env=False) as http:
        answer = await http.post("/auth/guest", headers=headers)
    assert answer.status_code == 200, answer.text
    return Guest(**answer.json())


@dataclass
class Issuer:
    """Signs tokens, and serves its keys: `keys` is what it answers with, `asked` how often it was asked."""

    url: str
    private: dict[str, Any] = field(default_factory=dict)
    keys: Any = None
    body: bytes | None = None
    status: int = 200
    asked: int = 0
    wait: threading.Event = field(default_factory=threading.Event)

    def add(self, kid: str, algorithm: str = "ES256") -> None:
        """Have one more key."""
        key = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa.generate_private_key(65537, 2048)
        self.private[kid] = (key, algorithm)
        kind = jwt.get_algorithm_by_name(algorithm)
        public: dict[str, Any] = kind.to_jwk(key.public_key(), as_dict=True)
        self.keys = {"keys": [*(self.keys or {"keys": []})["keys"], public | {"kid": kid, "alg": algorithm}]}

    def claims(self, user_id: Any = "ann", **changed: Any) -> dict[str, Any]:
        """What a good token says, with these changes; None takes a claim away."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": user_id, "iat": now, "exp": now + 600}
        return {name: value for name, value in (good | changed).items() if value is not None}

    def token(self, user_id: Any = "ann", kid: str = "k1", **changed: Any) -> str:
        """A token that this issuer signed."""
        key, algorithm = self.private[kid]
        # PyJWT itself refuses to sign some of what a test needs to be told apart.
        payload = self.claims(user_id, **changed)
        return jwt.api_jws.encode(_json(payload), key, algorithm=algorithm, headers={"kid": kid, "typ": "JWT"})

    def settings(self) -> dict[str, Any]:
        """The settings that trust it."""
        jwks = f"{self.url}/.well-known/jwks.json"
        return {"auth": "jwt", "auth_issuer": self.url, "auth_audience": AUDIENCE, "auth_jwks_url": jwks}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """Run one on a free port, with a key of each of two algorithms, `k1` (ES256) and `k2` (RS256)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            issuer.wait.wait(10)
            body = _json(issuer.keys) if issuer.body is None else issuer.body
            self.send_response(issuer.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that gave up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_address[1]}")
        issuer.wait.set()
        issuer.add("k1", "ES256")
        issuer.add("k2", "RS256")
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield issuer
        issuer.wait.set()
        server.shutdown()
        serving.join()
