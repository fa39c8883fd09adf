"""The table that `make bench` prints, and what it says meanwhile."""

import sys
from collections.abc import Callable


class Table:
    """The rows as they are measured: ours, the other's, their ratio, and whether a target holds."""

    def __init__(self) -> None:
        self._lines = [f"{'scenario':<40} {'measure':<28} {'ours':>9} {'other':>9} {'ratio':>6}  target"]

    def add(
        self,
        scenario: str,
        measure: str,
        ours: float,
        other: float | None = None,
        target: str = "",
        holds: Callable[[float, float], bool] | None = None,
    ) -> None:
        """A row; `other` is the floor, or what a line above says."""
        numbers = f"{ours:>9.1f}{'':17}"
        if other is not None:
            ratio = f"{ours / other:.3g}" if other else "-"  # a time below the clock's tick
            numbers = f"{ours:>9.1f} {other:>9.1f} {ratio:>6}"
        verdict = f"{target} {'ok' if holds(ours, other or 0.0) else 'MISSED'}" if holds else target
        self._lines.append(f"{scenario:<40} {measure:<28} {numbers}  {verdict}".rstrip())

    def __str__(self) -> str:
        return "\n".join(self._lines)


def progress(text: str) -> None:
    """A line for whoever waits."""
    print(f"… {text}", file=sys.stderr)
