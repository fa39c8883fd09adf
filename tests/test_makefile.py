"""The Makefile's memory: what is installed is remembered, and what is not, is not."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path, path: str) -> str:
    """Have make bring the Node tools up to date, with these programs; what it printed."""
    done = subprocess.run(
        ["/usr/bin/make", "node_modules/stamp"],
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def test_a_machine_that_gets_node_later_gets_its_packages(tmp_path: Path) -> None:
    """Without npm nothing is remembered; with it the packages are installed, once."""
    folder, programs = tmp_path / "checkout", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name in ("Makefile", "package.json", "package-lock.json"):
        shutil.copy(ROOT / name, folder)
    for name in ("sh", "touch", "mkdir", "echo"):
        (programs / name).symlink_to(str(shutil.which(name)))
    assert "npm is not installed" in make(folder, str(programs))
    npm = programs / "npm"
    npm.write_text("#!/bin/sh\nmkdir -p node_modules\necho installed >> log\n")
    npm.chmod(0o755)
    make(folder, str(programs))
    make(folder, f"{programs}{os.pathsep}/nowhere")
    assert (folder / "log").read_text() == "installed\n"
