"""What a function costs before its first event: importing its handler out of its zip, beside a naive one's imports.

The naive function has the same libraries. Both see what they would see in AWS Lambda: their zip, with its bytecode, the
boto3 of its runtime, and no place to keep what they compile. Memory is told with and without what the bare interpreter
has before it imports anything.
"""

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory

from tests.support.lambda_runtime import RUNTIME_BOTO, install
from tests.support.sls import for_this_machine, run_sls

NOTHING = "pass"
HANDLER = "import functions.summary.handler"
WITH_STORE = "import functions.summary.handler, infra.store.supabase"
NAIVE = "import fastapi, mangum, supabase, boto3"
LEFT_OUT = ("cryptography", "cffi", "pycparser")
"""What our zip does without and pip would bring."""
MEASURE = """
import time
began = time.process_time()
{statement}
took = time.process_time() - began
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(took * 1e3, int(peak) / 1024)
"""
"""In CPU time: a machine that is shared does not change it. VmHWM is the peak in KiB (man proc_pid_status); getrusage's
would be at least this process's own, which a child is born with."""


@dataclass(frozen=True)
class Import:
    """What it took."""

    cpu_ms: float
    peak_mib: float
    added_mib: float
    """The peak without the bare interpreter's."""


def measure(statement: str, *path: Path) -> tuple[float, float]:
    """Import this in a process of its own that sees these folders and the standard library: CPU in ms, peak in MiB."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, path))}
    # -S: without this machine's packages. -B: and without keeping what is compiled.
    command = [sys._base_executable, "-S", "-B", "-c", MEASURE.format(statement=statement)]  # type: ignore[attr-defined]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    cpu_ms, peak_mib = map(float, printed.split())
    return cpu_ms, peak_mib


def medians(rounds: int) -> tuple[Import, Import, Import, Import]:
    """The handler's, that without bytecode, with the store that its first call opens, and the naive function's."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        ours, plain, naive, runtime = _unpack(folder)
        cases = [(NOTHING, ours), (HANDLER, ours), (HANDLER, plain), (WITH_STORE, ours), (NAIVE, naive)]
        seen = [[measure(statement, task, runtime) for statement, task in cases] for _ in range(rounds)]
    by_case = zip(*seen, strict=True)
    (_, bare), *rows = [[statistics.median(column) for column in zip(*times, strict=True)] for times in by_case]
    handler, compiling, with_store, simple = (Import(cpu_ms, peak, peak - bare) for cpu_ms, peak in rows)
    return handler, compiling, with_store, simple


def _unpack(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Our zip, the same without bytecode, the naive function's, and Lambda's runtime."""
    run_sls("package", "--package", str(folder / "package"), *for_this_machine(), environment={})
    ours, plain, naive, runtime = (folder / name for name in ("ours", "plain", "naive", "runtime"))
    with zipfile.ZipFile(folder / "package" / "realtime-ai-backend.zip") as packed:
        for task in (ours, plain, naive):
            packed.extractall(task)
    for cache in list(plain.rglob("__pycache__")):
        shutil.rmtree(cache)
    install(naive, LEFT_OUT)
    install(runtime, RUNTIME_BOTO)
    for task in (naive, runtime):
        compileall.compile_dir(task, maxlevels=100, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    return ours, plain, naive, runtime
