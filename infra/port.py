"""A port that is taken, and by whom."""

import http.client
import json

SERVICE = "Realtime AI Backend"
ASK_SECONDS = 1.0


def taken(host: str, port: int) -> str:
    """What to tell somebody who cannot have this port."""
    name = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    who = f"another {SERVICE} has it" if _is_ours(name, port) else "it is in use already"
    return f"HOST, PORT: cannot listen on {host}:{port}: {who}. Take another port: PORT={port + 1} make run"


def _is_ours(host: str, port: int) -> bool:
    # Not urllib, which would ask a proxy.
    connection = http.client.HTTPConnection(host, port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read(10_000)).get("service") == SERVICE)
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return False
    finally:
        connection.close()
