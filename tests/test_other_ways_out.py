"""torch.jit, torch.export and ONNX without what they need: what happens, and which words say so."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fastindrnn import DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [IndRNN, IndRNNCell, ResidualIndRNN, DenseIndRNN])
def test_script_says_what_to_use(kind):
    for model in (kind(5, 6), nn.Sequential(kind(5, 6), nn.Linear(6, 1))):
        with pytest.raises(
            NotImplementedError, match=r"compile \w+: use torch\.compile, or torch\.exp"
        ):
            torch.jit.script(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@torch.no_grad()
def test_trace_serves_evaluation():
    """For other lengths and batches too."""
    model = ResidualIndRNN(5, 6, 1).eval()
    traced = torch.jit.trace(model, (torch.randn(9, 3, 5),))
    x = torch.randn(11, 4, 5)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_without_the_translations_names_the_operator():
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"fastindrnn\.indrnn"):
        torch.onnx.export(IndRNN(5, 6).eval(), (torch.randn(9, 3, 5),), dynamo=True, verbose=False)


_LOAD = """
import sys, torch
try:
    torch.export.load(sys.argv[1])
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("loaded without the operators")
import fastindrnn
x, expected = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x)[0], expected)
"""


def test_a_program_is_loaded_after_the_import(tmp_path):
    """Before it PyTorch says in its log that the operator is not registered."""
    path, results = tmp_path / "program.pt2", tmp_path / "results.pt"
    module, x = IndRNN(5, 6).eval(), torch.randn(9, 3, 5)
    torch.export.save(torch.export.export(module, (x,)), path)
    torch.save((x, module(x)[0].detach()), results)
    command = [sys.executable, "-c", _LOAD, path, results]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "We ran into an error when deserializing the saved file" in run.stdout
    assert "torch.ops.fastindrnn.indrnn.default" in run.stderr
    assert "import the custom op to register it" in run.stderr
