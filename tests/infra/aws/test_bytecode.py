"""Bytecode in a function's zip."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from infra.aws.bytecode import add_bytecode


@pytest.fixture
def zip_file(tmp_path: Path) -> Path:
    """A zip of a module, one that does not compile, and a file that is none."""
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as packed:
        packed.writestr("room/good.py", "def where(): raise ValueError\n")
        packed.writestr("room/bad.py", "print 'an older Python'\n")
        packed.writestr("room/data.txt", "words")
    return tmp_path / "some.zip"


def test_each_module_has_its_bytecode_and_the_rest_is_as_it_was(zip_file: Path) -> None:
    """Added beside the source; what does not compile stops nothing."""
    add_bytecode(zip_file)
    cached = Path(importlib.util.cache_from_source("room/good.py")).as_posix()
    with zipfile.ZipFile(zip_file) as packed:
        assert sorted(packed.namelist()) == sorted(["room/good.py", "room/bad.py", "room/data.txt", cached])
        assert packed.read("room/data.txt") == b"words"
        # PEP 552: a hash stands for the source, and is not checked.
        assert packed.read(cached)[4:8] == (1).to_bytes(4, "little")
        assert b"/var/task/room/good.py" in packed.read(cached)


def test_the_same_files_make_the_same_zip(zip_file: Path, tmp_path: Path) -> None:
    """The framework deploys a function only if its zip has changed."""
    again = tmp_path / "again.zip"
    again.write_bytes(zip_file.read_bytes())
    add_bytecode(zip_file)
    add_bytecode(again)
    assert zip_file.read_bytes() == again.read_bytes()
