"""`python -m fastindrnn`: what it says of the machine."""

from unittest import mock

import pytest
import torch
from fastindrnn.kernels.cpu import openmp

from fastindrnn import IndRNN
from fastindrnn.__main__ import main


def test_report(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "self-check on cpu: outputs and gradients within" in printed
    assert f"the loops run on {openmp.threads()}" in printed


def test_report_on_a_machine_with_an_intel_gpu(capsys, monkeypatch):
    """There are no kernels for it, so nothing is to be checked on it."""
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda: "Arc")
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "xpu (Arc; backend 'reference' alone)" in printed
    assert "self-check on xpu" not in printed


@pytest.mark.parametrize("wrong", [torch.nan, 1.0])
@pytest.mark.parametrize("result", [0, 1])
def test_a_wrong_number_fails_the_check(result, wrong, capsys):
    """Also a NaN, in whichever result."""
    forward = IndRNN.forward

    def broken(rnn, x):
        results = list(forward(rnn, x))
        if x.dtype == torch.float32:
            results[result] = results[result] + wrong
        return results

    with mock.patch.object(IndRNN, "forward", broken):
        assert main([]) == 1
    assert "FAILED" in capsys.readouterr().out
