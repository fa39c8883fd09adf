"""Bytecode for a function's zip, beside its sources. `bytecode.cjs` runs this by the Python that the function has.

AWS Lambda's file system cannot be written to: without bytecode each cold start compiles all that it imports.
"""

import compileall
import sys
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory

TASK_ROOT = "/var/task"
"""Where Lambda unpacks the zip; a traceback names its files there."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Each file's time, as in what the framework packs: so that the same files make the same zip, and no new deployment."""


def add_bytecode(zip_file: Path) -> None:
    """Compile every module in the zip and add what came of it.

    A module that does not compile is left as it is: libraries carry some for another Python.
    """
    with TemporaryDirectory() as folder, zipfile.ZipFile(zip_file, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.extractall(folder)
        # Unchecked: unpacking gives the sources a new time, and nobody edits them there.
        compileall.compile_dir(
            folder,
            maxlevels=100,
            stripdir=folder,
            prependdir=TASK_ROOT,
            quiet=2,
            workers=0,
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        compiled = sorted(Path(folder).rglob("*.pyc"))
        if not compiled:
            sys.exit("nothing in it could be compiled")
        for file in compiled:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, file.read_bytes())


if __name__ == "__main__":
    add_bytecode(Path(sys.argv[1]))
