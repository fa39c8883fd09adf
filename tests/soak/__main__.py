"""`make soak`: ten minutes of polite visitors among strangers, on SQLite and on Supabase, and the figures."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.run import soak


def main() -> int:
    """Run it on each store; 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--visitors", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=300, help="on each store")
    parser.add_argument("--store", choices=["sqlite", "supabase"], action="append")
    options = parser.parse_args()
    broken: list[str] = []
    for store in options.store or ["sqlite", "supabase"]:
        print(f"{store}: {options.visitors} visitors among strangers, {options.seconds:.0f} s …", flush=True)
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            outcome = soak(Path(folder), store, options.visitors, options.seconds)
        for name, value in outcome.report().items():
            print(f"  {name:<12} {value}", flush=True)
        broken += [f"{store}: {each}" for each in outcome.broken()]
    for each in broken:
        print(f"BROKEN {each}", file=sys.stderr)
    return 1 if broken else 0


sys.exit(main())
