"""The cache of the compiled CPU loops: no failure of it is one of the loops."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from fastindrnn.kernels.cpu import cache, openmp
from numba import carray, types
from numba.core import config, typing


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "_warned", False)
    return tmp_path / "kept"


def total(term, name="total"):
    """1 + term, by a loop that is compiled, or read if it was kept."""

    def function(pointer):
        numbers = carray(pointer, 2)
        numbers[1] = numbers[0] + term

    signature = typing.signature(types.void, types.CPointer(types.float64))
    loop = cache.compile_loop(function, name, signature)
    numbers = np.array([1.0, 0.0])
    openmp.Loop(loop).call(numbers.ctypes.data)
    return numbers[1]


def test_is_read_again(folder):
    assert total(2) == 3
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    assert total(5) == 3, "the same name stands for the same loop"
    assert file.stat().st_mtime_ns == written
    assert total(5, "other") == 6
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "changed", "foreign"])
def test_a_damaged_file_is_replaced(folder, damage):
    total(2)
    (file,) = folder.iterdir()
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(
        {
            "empty": b"",
            "short": data[:middle],
            "changed": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "foreign": b"x" * len(data),
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match="damaged") as warned:
        assert total(2) == 3
    assert len(warned) == 1
    assert total(5) == 3, "kept again, and whole"


def test_a_full_disk(folder, monkeypatch):
    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left") as warned:
        assert [total(2), total(3)] == [3, 4]
    assert len(warned) == 1, "a warning of the same for each loop"
    assert list(folder.iterdir()) == [], "leaves half a file"


@pytest.mark.parametrize("obstacle", ["a file", "no rights"])
def test_a_folder_that_cannot_be_written(folder, obstacle, monkeypatch):
    if obstacle == "a file":
        folder.write_text("not a folder")
    else:

        def refuse(path, *arguments, **options):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.warns(RuntimeWarning, match="compiled anew"):
        assert total(2) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert total(3) == 4


def test_lies_in_the_users_folder_and_not_beside_the_package(tmp_path):
    script = """if True:
        import torch
        from fastindrnn.kernels import cpu
        for dtype in (torch.float32, torch.float64):
            a = torch.ones(1, 3, 2, dtype=dtype)
            cpu.scan_forward(a, torch.ones(2), None, a)
            assert a[0, :, 0].tolist() == [1, 2, 3]
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    environment |= {"HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    for _ in range(2):  # the second time from two files, of two processes' making or of one's
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    kept = [path for path in tmp_path.rglob("*.loop") if "fastindrnn" in path.parts]
    assert len(kept) == 2
    assert not list(Path(cache.__file__).parent.rglob("*.nbi"))
