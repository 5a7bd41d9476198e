"""What the speed measurements compare: what a candidate computes, and that ours are checked."""

from functools import partial

import pytest
import torch
from torch import nn

from bench.speed import candidates, checks
from bench.speed.candidates import LAYER, LAYERS, LOOP, Gradients
from bench.speed.cases import FORWARD, Inputs
from fastindrnn import IndRNN


def test_of_other_packages_those_installed_are_candidates(monkeypatch):
    found = {"minGRU_pytorch"}
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name in found or None)
    assert list(candidates.candidates(FORWARD)) == [*LAYERS, candidates.MIN_GRU]


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
