"""The Edge function on this machine, in the Deno that npm brings: `make edge`, and the tests.

It does what the Lambda would with the same `.env`: the same store, and the same model or none.
"""

import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from infra.local.server import CannotStart, Server, is_listening
from infra.settings import Settings, SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[2]
FUNCTION = ROOT / "functions" / "summary" / "edge" / "index.ts"
PORT = 54330
VARIABLES = (
    "HANDOFF_SECRET",
    "HANDOFF_SECRET_OLD",
    "LLM_MAX_TOKENS",
    "LLM_MODEL",
    "LLM_QUIRKS",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "SUPABASE_KEY",
    "SUPABASE_SECRET_KEYS",
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_URL",
)
"""All that the function reads of its environment, and may."""
WELCOME = """
The summary function is about to answer. Put these into .env, or before `make run`:

  HANDOFF_URL=http://127.0.0.1:{port}/
  HANDOFF_SECRET={secret}

Ctrl-C ends it.
"""


def find_deno() -> Path:
    """The program itself, not npm's wrapper, which would not pass on the signal that ends it.

    Raises:
        CannotStart: there is none.
    """
    if installed := sorted((ROOT / "node_modules" / "@deno").glob("*/deno")):
        return installed[0]
    if found := shutil.which("deno"):
        return Path(found)
    raise CannotStart("Deno is not installed: install Node 20, then `npm ci`")


def command() -> list[str]:
    """How to run the function: with the network and its variables, and without files, modules or questions."""
    allowed = ["--allow-net", f"--allow-env={','.join(VARIABLES)}"]
    return [str(find_deno()), "run", "--quiet", "--no-prompt", "--no-remote", "--no-npm", *allowed, str(FUNCTION)]


def environment(port: int, given: dict[str, str]) -> dict[str, str]:
    """The environment of the process: of the function's own variables only those that are given."""
    ours = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # The repository's package.json is for its tools; the function has no packages.
    fixed = {"DENO_NO_PACKAGE_JSON": "1", "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    return ours | fixed | given | {"DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{port}"}


def variables(settings: Settings) -> dict[str, str]:
    """The function's variables as these settings have them; a secret is made where there is none.

    Raises:
        CannotStart: it names the setting that is missing.
    """
    if not settings.supabase_url or not settings.supabase_key:
        raise CannotStart("SUPABASE_URL and SUPABASE_KEY: needed, the function reads no SQLite; try `make supabase`")
    secret = settings.handoff_secret.get_secret_value() if settings.handoff_secret else secrets.token_urlsafe(32)
    given = {"SUPABASE_URL": settings.supabase_url, "SUPABASE_KEY": settings.supabase_key.get_secret_value()}
    given["HANDOFF_SECRET"] = secret
    if settings.llm_provider == "openai":
        # For the function, a key means that there is a model. A local model server may need none.
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else "not-needed"
        given |= {"OPENAI_API_KEY": key, "LLM_MODEL": settings.llm_model or ""}
        given |= {"OPENAI_BASE_URL": settings.openai_base_url} if settings.openai_base_url else {}
        given |= {"LLM_MAX_TOKENS": str(settings.llm_max_tokens)} if settings.llm_max_tokens else {}
    return given


class Edge(Server):
    """The function, running on a port, with these variables and no others."""

    def __init__(self, folder: Path, port: int, given: dict[str, str]) -> None:
        super().__init__(port, folder / "edge.log")
        self._given = given
        self.log = folder / "edge.log"
        self.url = f"http://127.0.0.1:{port}/"

    def start(self) -> None:
        """Start it.

        Raises:
            CannotStart: it says why.
        """
        self._spawn(command(), self._answers, env=environment(self.port, self._given))

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 405  # a GET is answered, and refused
        except OSError:
            return False
        return False


def main() -> None:
    """Become the function, with the settings of `.env`."""
    try:
        given = variables(load_settings())
        arguments = command()
        if is_listening(PORT):
            raise CannotStart(f"port {PORT} is taken; is another `make edge` running?")
    except (CannotStart, SettingsError) as error:
        sys.stderr.write(f"cannot start: {error}\n")
        sys.exit(2)
    sys.stdout.write(WELCOME.format(port=PORT, secret=given["HANDOFF_SECRET"]))
    sys.stdout.flush()
    os.execve(arguments[0], arguments, environment(PORT, given))


if __name__ == "__main__":
    main()
