"""The file `.env`: what is set in it, and which of its names nobody reads."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

TYPO, LIKENESS = 0.88, 0.7
"""How alike two names must be for one to be a misspelt other, and to be worth a word (`difflib`'s ratio, 0 to 1)."""
OF_OTHERS = ("AWS_", "TEST_", "NEXT_PUBLIC_", "VITE_")
"""Names that other programs read from the same file, or our own tests."""


def read_env_file(path: Path | None) -> dict[str, str | None]:
    """What the file sets, by name; nothing where there is no file.

    Raises:
        UnicodeDecodeError: it is not UTF-8 text.
    """
    if path is None or not path.is_file():
        return {}
    from dotenv import dotenv_values  # here, as AWS Lambda has no file, and an import delays its cold start

    return dotenv_values(path, encoding="utf-8")


def misspelt(names: Iterable[str], known: Iterable[str], likeness: float = TYPO) -> Iterator[tuple[str, str]]:
    """Each of the names that is none of the known ones, but so much like one; with that one."""
    candidates = sorted(known)
    for name in names:
        if name.upper() not in candidates and not name.upper().startswith(OF_OTHERS):
            for nearest in get_close_matches(name.upper(), candidates, n=1, cutoff=likeness):
                yield name, nearest
