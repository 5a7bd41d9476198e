"""What the speed measurements compare: what a candidate computes, and that ours are checked."""

import itertools
import sys
import types
from functools import partial

import emulator
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, gradients_by_formula, inputs
from tolerance import assert_close_to_reference
from torch import nn

from bench.speed import candidates, checks
from bench.speed.candidates import LAYER, LAYERS, LOOP, Gradients
from bench.speed.cases import Inputs
from fastindrnn import IndRNN
from fastindrnn.kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.triton
@emulator.examples(30)
@given(
    st.builds(
        Case,
        B=st.sampled_from([1, 2, 5]),
        T=st.integers(1, 20),
        N=st.one_of(st.integers(1, 70), st.just(300)),  # one block, and no whole number of blocks
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        seed=st.integers(0, 2**31),
    )
)
def test_serial_kernel_against_reference(case):
    pytest.importorskip("triton", reason="Triton is for Linux")
    (a, u, _, _), (grad_h, _) = inputs(case)
    leaves = [part.to(DEVICE).requires_grad_() for part in (a, u)]
    h = candidates.serial_scan(*leaves)
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


def linear_recurrence(gate, token, time=1):
    """h_t = gate_t * h_{t-1} + token_t along a dimension."""
    states, h = [], 0
    for g, x in zip(gate.unbind(time), token.unbind(time), strict=True):
        h = g * h + x
        states.append(h)
    return torch.stack(states, time)


def contiguous_scan(forget, tokens):  # (B, C, T)
    assert forget.is_contiguous()
    assert tokens.is_contiguous()
    return linear_recurrence(forget, tokens, time=2)


def flashrnn(Wx, R, b, function, backend, dtype):  # B T G N D, G N D D, G N D
    assert (function, backend, dtype) == ("elman", "cuda_fused", "float32")
    heads, head = Wx.shape[3:]
    assert (R.shape, b.shape) == ((1, heads, head, head), (1, heads, head))
    states = Wx.movedim(2, 0).cumsum(2)  # S B T N D
    return states, states[:, :, -1:]


class SRU(nn.Linear):
    def __init__(self, input_size, hidden_size, num_layers):
        super().__init__(input_size, hidden_size)

    def forward(self, x):
        return super().forward(x).cumsum(0), None  # time is the first dimension


PEERS = {  # a function that stands for the package's, and what the layer is to make of its parts
    "accelerated_scan.scalar": (
        candidates.accelerated_scan,
        {"scan": contiguous_scan},
        lambda x, token, gate: linear_recurrence(gate(x).sigmoid(), token(x)),
    ),
    "fla.ops.hgrn": (
        candidates.hgrn,
        {"chunk_hgrn": lambda x, g: (linear_recurrence(g.exp(), x), None)},
        lambda x, i, f: linear_recurrence(f(x).sigmoid(), (1 - f(x).sigmoid()) * i(x)),
    ),
    "flashrnn": (candidates.flashrnn, {"flashrnn": flashrnn}, lambda x, W, R: W(x).cumsum(1)),
    "sru": (candidates.sru, {"SRU": SRU}, lambda x, sru: nn.Linear.forward(sru, x).cumsum(1)),
}


@pytest.mark.parametrize("name", PEERS)
def test_functions_of_other_packages_get_what_they_take(name, monkeypatch):
    make, functions, expected = PEERS[name]
    module = types.ModuleType(name)
    vars(module).update(functions)
    for parent in itertools.accumulate(name.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    x, layer = torch.randn(2, 9, 200), make(200)
    torch.testing.assert_close(layer(x), expected(x, *layer.parts))


def test_of_other_packages_those_installed_are_candidates(monkeypatch):
    found = {"sru", "minGRU_pytorch"}
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name in found or None)
    assert list(candidates.installed()) == ["sru", "minGRU-pytorch"]


class WrongLayer(IndRNN):
    """Right but for one thing."""

    wrong = None

    def forward(self, x):
        h, h_n = super().forward(x)
        if self.wrong is None:
            return h, h_n
        if self.wrong == "h":
            return torch.cat([h[:, :-1], h[:, -1:] * 2], 1), h_n
        parameter = dict(self.named_parameters(), x=x)[self.wrong]
        extra = parameter.sum() * h.detach().mean()
        return h + (extra - extra.detach()), h_n


def wrong_scan(wrong, a, u):
    """`indrnn_scan` with a mistake in one thing."""
    h, _ = candidates.indrnn_scan(a, u.detach() + 0.99 * (u - u.detach()) if wrong == "u" else u)
    if wrong == "x":
        h = h + 0.01 * (h - h.detach())
    return torch.cat([h[:, :-1], h[:, -1:] * 1.001], 1) if wrong == "h" else h


@pytest.mark.parametrize("steps", [30, 700])
@pytest.mark.parametrize(
    ("wrong", "said"), [("h", "h"), ("x", "gradient of a"), ("u", "gradient of u")]
)
def test_a_wrong_recurrence_is_found(wrong, said, steps):
    data = Inputs.draw((2, steps, 8), torch.float32, "cpu")
    right, faulty = (candidates.Scan(partial(wrong_scan, what), 8) for what in (None, wrong))
    checks.check(right, Gradients(right, data, once=True), data)
    with pytest.raises(checks.Wrong, match=rf"^{said} is off by .*, allowed .*: not timed"):
        checks.check(faulty, Gradients(faulty, data, once=True), data)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("h", "h"),
        ("x", "gradient of x"),
        ("weight_ih_l0", "gradient of W"),
        ("bias_ih_l0", "gradient of b"),
        ("weight_hh_l0", "gradient of u"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_layer_is_found(wrong, said, dtype):
    torch.manual_seed(0)
    data = Inputs.draw((2, 190, 8), dtype, "cpu")
    rnn = WrongLayer(8, 8, batch_first=True, dtype=dtype)
    checks.check(rnn, Gradients(rnn, data), data)
    rnn.wrong = wrong
    with pytest.raises(checks.Wrong, match=f"^{said} is off by"):
        checks.check(rnn, Gradients(rnn, data), data)


def test_the_loop_is_an_indrnn():
    data, linear, scan = Inputs.draw((2, 9, 5), torch.float32, "cpu"), *LAYERS[LOOP](5)
    rnn = LAYERS[LAYER](5)
    rnn.weight_ih_l0, rnn.bias_ih_l0 = linear.weight, linear.bias
    rnn.weight_hh_l0 = scan.weight_hh_l0
    torch.testing.assert_close(nn.Sequential(linear, scan)(data.x), rnn(data.x)[0])
