"""fastindrnn::stack within PyTorch: under compile, export, autocast and checkpointing."""

import contextlib
import copy

import pytest
import torch
from scan_cases import loss_of
from torch.nn.utils.rnn import pack_sequence

from fastindrnn import IndRNN
from fastindrnn import plan as planning
from fastindrnn.functional import run_stack
from fastindrnn.options import WHOLE, Parameters, Recurrence


@contextlib.contextmanager
def counted(monkeypatch):
    """Calls of the stack's operator, made in the meantime by a layer."""
    from fastindrnn import layers

    calls = []

    def run(*arguments):
        calls.append(1)
        return run_stack(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(layers, "run_stack", run)
        yield calls


def results(module, x, **options):
    output, h_n = module(x, **options)
    rows = output if isinstance(output, torch.Tensor) else output.data
    parameters = list(module.parameters())
    return rows.detach(), h_n.detach(), *torch.autograd.grad(loss_of(rows, h_n), parameters)


@contextlib.contextmanager
def without_it(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_STACK", planning._INFERENCE)
        yield


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"grad_clip": 0.1}, {"dropout": 0.5}])
def test_layers_use_it_for_training(monkeypatch, options, batch_first):
    """And give the same without it. With a dropout that acts, and in inference, they do not."""
    module = IndRNN(5, 6, 3, batch_first=batch_first, **options).double()
    x, hx = torch.randn(4, 3, 5).double(), torch.randn(3, 3 if not batch_first else 4, 6).double()
    with counted(monkeypatch) as calls:
        module(x)
        assert len(calls) == (0 if options.get("dropout") else 1)
        module.eval()
        actual = results(module, x, hx=hx)
        assert calls.pop()
        calls.clear()
        with torch.no_grad():
            module(x)
        assert not calls
    with without_it(monkeypatch):
        torch.testing.assert_close(results(module, x, hx=hx), actual)


def test_packed_sequences(monkeypatch):
    module = IndRNN(5, 6, 3).double()
    packed = pack_sequence([torch.randn(n, 5).double() for n in (3, 6, 1)], enforce_sorted=False)
    actual = results(module, packed)
    with without_it(monkeypatch):
        torch.testing.assert_close(results(module, packed), actual)


def test_compile():
    """Without a graph break, forward and backward, with and without lengths."""
    module, x = IndRNN(5, 6, 3, grad_clip=1.0), torch.randn(9, 3, 5)
    for options in ({}, {"lengths": torch.tensor([9, 4, 0])}):
        expected = results(copy.deepcopy(module), x, **options)
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True)
        torch.testing.assert_close(results(compiled, x, **options), expected, rtol=1e-4, atol=1e-4)


def test_export_of_the_operator():
    class Stack(torch.nn.Module):
        def forward(self, x, weights, us):
            layers = [Parameters(weight, None, u) for weight, u in zip(weights, us, strict=True)]
            return run_stack(x, layers, None, WHOLE, Recurrence(direction="reverse"))

    x, weights, us = torch.randn(2, 7, 4), [torch.randn(4, 4)] * 2, [torch.rand(4)] * 2
    dims = {"x": {1: torch.export.Dim("T", min=2)}, "weights": [None] * 2, "us": [None] * 2}
    program = torch.export.export(Stack(), (x, weights, us), dynamic_shapes=dims, strict=False)
    assert any("stack" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(2, 11, 4)
    actual = program.module()(x, weights, us)
    torch.testing.assert_close(actual, Stack()(x, weights, us))


def test_autocast_and_mixed_precision():
    """Products in bfloat16, u and the parameters' gradients in float32, with a gradient scaler."""
    module, x = IndRNN(5, 6, 3), torch.randn(9, 4, 5)
    expected = results(module, x)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = module(x)
        assert output.dtype == h_n.dtype == torch.bfloat16
        scaler.scale(loss_of(output.float(), h_n.float())).backward()
    for parameter, grad in zip(module.parameters(), expected[2:], strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad / 16 - grad).norm() <= 0.1 * grad.norm() + 1e-3


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    module, x = IndRNN(5, 6, 3), torch.randn(9, 3, 5, requires_grad=True)
    expected = results(module, x.detach())
    output, h_n = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)
    loss_of(output, h_n).backward()
    torch.testing.assert_close([p.grad for p in module.parameters()], list(expected[2:]))


def test_functional_call_and_copies():
    module, other, x = IndRNN(5, 6, 3), IndRNN(5, 6, 3), torch.randn(9, 3, 5)
    state = dict(other.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(module, state, x), other(x))
    torch.testing.assert_close(copy.deepcopy(other)(x), other(x))
