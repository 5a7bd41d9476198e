"""`python -m fastindrnn`: what it says of the machine."""

import pytest
import torch
from fastindrnn.kernels.cpu import openmp

from fastindrnn.__main__ import main


def test_report(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "self-check on cpu: outputs and gradients within" in printed
    assert f"the loops run on {openmp.found()}" in printed


def test_report_on_a_machine_with_an_intel_gpu(capsys, monkeypatch):
    """There are no kernels for it, so nothing is to be checked on it."""
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda: "Arc")
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "xpu (Arc; backend 'reference' alone)" in printed
    assert "self-check on xpu" not in printed


@pytest.mark.parametrize("missing", ["torch", "OpenMP"])
def test_one_thread_where_torchs_openmp_is_not_found(missing, monkeypatch):
    class Library:
        def __init__(self, path):
            if missing == "torch":
                raise OSError(path)

    with monkeypatch.context() as patched:
        patched.setattr(openmp.ctypes, "CDLL", Library)
        alone = openmp._Team()
    assert alone.size(1 << 20) == 1
    monkeypatch.setattr(openmp, "_team", alone)
    assert openmp.found().startswith("one thread")


def test_the_team_is_found_beside_the_library_that_torch_loaded(monkeypatch):
    """Not in a folder of the wheel: elsewhere torch's libraries lie elsewhere."""
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    openmp._Team()
    assert openmp._Team().parallel is not None
