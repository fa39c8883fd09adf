"""Deploys the Edge function with the Supabase CLI: `python -m infra.local.edge_deploy --remote=<project ref>`.

The CLI uploads nothing from outside the folder it works in, and would call the function deployed all the same. So it is
given a folder of its own for the time, with `infra/supabase` and the function side by side.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.local.edge import FUNCTION
from infra.local.supabase import CLI, ROOT

SLUG = "summary"


def lay_out(folder: Path) -> None:
    """Copy what the CLI needs: the project's configuration, also of which project it is linked to, and the function."""
    project = ROOT / "infra" / "supabase"
    shutil.copytree(project, folder / "supabase")
    config = (project / "config.toml").read_text()
    assert config.count('"../../functions/') == 1, "config.toml says where the function is"
    (folder / "supabase" / "config.toml").write_text(config.replace('"../../functions/', '"../functions/'))
    sources = folder / FUNCTION.parent.relative_to(ROOT)
    sources.mkdir(parents=True)
    for file in [*FUNCTION.parent.glob("*.ts"), FUNCTION.parent / "deno.json"]:
        shutil.copy(file, sources)


def main(arguments: list[str]) -> int:
    """Deploy; the CLI's exit code. `arguments` are passed on to it."""
    if not CLI.exists():
        sys.stderr.write("cannot deploy: the Supabase CLI is not installed: install Node 20, then `npm ci`\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        lay_out(Path(folder))
        command = [str(CLI), "--workdir", folder, "functions", "deploy", SLUG, "--use-api", *arguments]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
