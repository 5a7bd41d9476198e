"""The TensorFlow cell, against a loop with its formula."""

import numpy as np
import pytest
import torch
from interop_cases import TENSORFLOW, B, H, K, T, double, kernels, numbers, run_tensorflow

from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.interop import load_tensorflow, to_tensorflow


@pytest.mark.parametrize("bounds", [(), (0.3,), (0.0, 0.5), (0.3, 0.8)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_tensorflow(activation, bounds):
    states = kernels(TENSORFLOW, 2)
    module = double(IndRNN, K, H, 2, activation)
    names = "recurrent_min_abs", "recurrent_max_abs"
    load_tensorflow(module, states, **dict(zip(names, bounds, strict=False)))
    x = expected = numbers(T, B, K)
    for state in states:
        expected = run_tensorflow(state, expected, getattr(torch, activation), *bounds)
    torch.testing.assert_close(module(x)[0], expected)
    for state in to_tensorflow(module):
        x = run_tensorflow(state, x, getattr(torch, activation))
    torch.testing.assert_close(x, expected)


def test_tensorflow_bounds_are_of_the_absolute_value():
    """The example of the cell's own test; a weight of 0 has no sign to keep."""
    given = torch.tensor([-5.0, -2.0, 0.1, 5.0, 0.0])
    state = {"input_kernel": torch.ones(2, 5), "recurrent_kernel": given, "bias": torch.zeros(5)}
    cell = IndRNNCell(2, 5)
    load_tensorflow(cell, state, recurrent_min_abs=1, recurrent_max_abs=3)
    assert cell.weight_hh_l0.tolist() == [-3, -2, 1, 3, 0]
    for bounds in ({"recurrent_min_abs": -1}, {"recurrent_max_abs": float("nan")}):
        with pytest.raises(ValueError, match=r"recurrent_m.._abs must be at least 0, but is"):
            load_tensorflow(cell, state, **bounds)


def test_tensorflow_scopes_and_arrays():
    """As tf.train.load_checkpoint or a session gives them; one layer needs no list; a cell."""
    (state,) = kernels(TENSORFLOW, 1)
    named = {
        f"rnn/ind_rnn_cell/{key}:0": value.numpy().astype(np.float32)
        for key, value in state.items()
    }
    cell = IndRNNCell(K, H)
    load_tensorflow(cell, named)
    x = numbers(1, B, K)
    torch.testing.assert_close(cell(x[0].float()), run_tensorflow(state, x)[0].float())
