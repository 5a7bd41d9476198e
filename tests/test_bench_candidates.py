"""What the speed measurements compare with: the serial kernel, and layers of other packages."""

import sys
import types

import emulator
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, gradients_by_formula, inputs
from tolerance import assert_close_to_reference
from torch import nn

from bench.speed import candidates
from bench.speed.candidates import LAYER, LAYERS, LOOP, TrainingStep
from bench.speed.cases import Inputs
from fastindrnn.kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
cases = st.builds(
    Case,
    B=st.sampled_from([1, 2, 5]),
    T=st.integers(1, 20),
    N=st.one_of(st.integers(1, 70), st.just(300)),  # one block, and no whole number of blocks
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.triton
@emulator.examples(30)
@given(cases)
def test_serial_kernel_against_reference(case):
    pytest.importorskip("triton", reason="Triton is for Linux")
    from bench.speed.serial import SerialScan

    (a, u, _, _), (grad_h, _) = inputs(case)
    leaves = [part.to(DEVICE).requires_grad_() for part in (a, u)]
    h = SerialScan.apply(*leaves)
    actual = torch.autograd.grad(h, leaves, grad_h.to(DEVICE))
    h = h.detach().cpu()
    expected, _ = reference.scan(a.double(), u.double())
    loop, _ = reference.scan(a, u)
    assert_close_to_reference(h, expected, loop, what="h")

    g, relu = (grad_h, None, h, u, None), {"nonlinearity": "relu", "reverse": False}
    loop = gradients_by_formula(*g, **relu)
    expected = gradients_by_formula(*(None if x is None else x.double() for x in g), **relu)
    for what, *three in zip(("grad_a", "grad_u"), actual, expected, loop, strict=False):
        assert_close_to_reference(three[0].cpu(), *three[1:], what=what)


@pytest.fixture
def install(monkeypatch):
    """Puts a module of this name and these functions where an import finds it."""

    def write(name, **functions):
        module = types.ModuleType(name)
        vars(module).update(functions)
        for parent in (name[:i] for i, letter in enumerate(name) if letter == "."):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)

    return write


def linear_recurrence(gate, token, time):
    """h_t = gate_t * h_{t-1} + token_t along a dimension."""
    rows, h = [], 0
    for g, x in zip(gate.unbind(time), token.unbind(time), strict=True):
        h = g * h + x
        rows.append(h)
    return torch.stack(rows, time)


def test_accelerated_scan_gets_its_shapes(install):
    def scan(forget, inputs):  # (B, C, T)
        assert forget.is_contiguous()
        assert inputs.is_contiguous()
        return linear_recurrence(forget, inputs, 2)

    install("accelerated_scan.scalar", scan=scan)
    x, layer = torch.randn(2, 9, 64), candidates.accelerated_scan(64)
    token, gate = (part(x) for part in layer.parts)
    torch.testing.assert_close(layer(x), linear_recurrence(gate.sigmoid(), token, 1))


def test_hgrn_gets_the_logarithm_of_its_gate(install):
    def chunk_hgrn(x, g):  # (B, T, D)
        return linear_recurrence(g.exp(), x, 1), None

    install("fla.ops.hgrn", chunk_hgrn=chunk_hgrn)
    x, layer = torch.randn(2, 9, 64), candidates.hgrn(64)
    product, gate = (part(x) for part in layer.parts)
    f = gate.sigmoid()
    torch.testing.assert_close(layer(x), linear_recurrence(f, (1 - f) * product, 1))


@pytest.mark.parametrize(("features", "heads"), [(128, 2), (200, 25)])
def test_flashrnn_gets_its_shapes(install, features, heads):
    def flashrnn(Wx, R, b, function, backend, dtype):  # B T G N D, G N D D, G N D
        assert (function, backend, dtype) == ("elman", "cuda_fused", "float32")
        head = features // heads
        assert Wx.shape == (2, 9, 1, heads, head)
        assert R.shape == (1, heads, head, head)
        assert b.shape == (1, heads, head)
        states = Wx.movedim(2, 0).cumsum(2)  # S B T N D
        return states, states[:, :, -1:]

    install("flashrnn", flashrnn=flashrnn)
    x, layer = torch.randn(2, 9, features), candidates.flashrnn(features)
    torch.testing.assert_close(layer(x), layer.parts[0](x).cumsum(1))


def test_sru_gets_time_first(install):
    class SRU(nn.Linear):
        def __init__(self, input_size, hidden_size, num_layers):
            super().__init__(input_size, hidden_size)

        def forward(self, x):
            return super().forward(x).cumsum(0), None  # time is the first dimension

    install("sru", SRU=SRU)
    x, layer = torch.randn(2, 7, 5), candidates.sru(5)
    (sru,) = layer.parts
    torch.testing.assert_close(layer(x), sru(x.transpose(0, 1))[0].transpose(0, 1))


def test_the_loop_is_an_indrnn():
    inputs = Inputs.draw((2, 9, 5), torch.float32, "cpu")
    loop, rnn = LAYERS[LOOP](5), LAYERS[LAYER](5)
    parameters = loop.u, loop.input.weight, loop.input.bias
    names = "weight_hh_l0", "weight_ih_l0", "bias_ih_l0"
    with torch.no_grad():
        for name, parameter in zip(names, parameters, strict=True):
            getattr(rnn, name).copy_(parameter)
    step = TrainingStep(loop, inputs)
    step.leaves[1:] = parameters
    h, grads = step()
    step = TrainingStep(rnn, inputs)
    step.leaves[1:] = [getattr(rnn, name) for name in names]
    expected, expected_grads = step()
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_of_other_packages_those_installed_are_candidates(monkeypatch):
    found = {"sru", "minGRU_pytorch"}
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name in found or None)
    assert list(candidates.installed()) == ["sru", "minGRU-pytorch"]
