"""Haste's two layers, against a loop with their formulas."""

import pytest
import torch
from interop_cases import HASTE, B, H, K, T, double, kernels, numbers, run_haste

from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.interop import load_haste, to_haste


@pytest.mark.parametrize("zoneout", [0.0, 0.25])
@pytest.mark.parametrize("layers", [1, 3])
def test_haste(layers, zoneout):
    states = kernels(HASTE, layers)
    module = double(IndRNN, K, H, layers, "tanh", zoneout=zoneout).eval()
    load_haste(module, states, zoneout=zoneout)
    x = expected = numbers(T, B, K)
    for state in states:
        expected = run_haste(state, expected, zoneout)
    torch.testing.assert_close(module(x)[0], expected)
    for state in to_haste(module):
        assert all(value.is_contiguous() for value in state.values())
        x = run_haste(state, x, zoneout)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("zoneout", [0.0, 0.25])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_haste_layer_norm(bidirectional, zoneout):
    """Its bias comes behind the norm of x W, its gamma has a second row that is not used."""
    states = kernels((*HASTE, "gamma"), 1) * (2 if bidirectional else 1)
    options = {"norm": "layer", "norm_position": "before", "bias": False}
    options |= {"zoneout": zoneout, "bidirectional": bidirectional}
    module = double(IndRNN, K, H, 1, "tanh", **options).eval()
    load_haste(module, states, zoneout=zoneout)
    x = numbers(T, B, K)
    expected = run_haste(states[0], x, zoneout)
    if bidirectional:
        backwards = run_haste(states[1], x.flip(0), zoneout).flip(0)
        expected = torch.cat([expected, backwards], -1)
    torch.testing.assert_close(module(x)[0], expected)
    for state, back in zip(states, to_haste(module), strict=True):
        assert back.keys() == state.keys()
        assert back["gamma"].shape == (2, H)
        torch.testing.assert_close(run_haste(back, x), run_haste(state, x), rtol=0, atol=0)


def test_haste_layer_norm_needs_a_module_of_its_form():
    (state,) = kernels((*HASTE, "gamma"), 1)
    fits = {"norm": "layer", "norm_position": "before", "bias": False}
    for other in ({"norm_position": "after"}, {"bias": True}):
        module = IndRNN(K, H, 1, "tanh", **fits | other)
        for use in (to_haste, lambda module: load_haste(module, state)):
            with pytest.raises(ValueError, match="must have norm_position='before' and bias=False"):
                use(module)
    module = IndRNN(K, H, 1, "tanh", **fits)
    module.norm_l0.eps = 1e-6
    with pytest.raises(ValueError, match="norm_l0 has eps=1e-06"):
        to_haste(module)


def test_haste_with_another_zoneout():
    for module in (IndRNN(K, H, 1, "tanh"), IndRNNCell(K, H, nonlinearity="tanh")):
        with pytest.raises(ValueError, match=r"module's zoneout must be 0\.1, but is 0\.0"):
            load_haste(module, kernels(HASTE, 1)[0], zoneout=0.1)
