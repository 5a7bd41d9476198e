"""Diagonal layers of PyTorch's own; projections and vectors from anywhere."""

import pytest
import torch
from interop_cases import B, H, K, T, double, numbers, run_tensorflow
from torch import nn

from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.interop import load_layers, load_rnn, to_rnn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_rnn_and_back(nonlinearity, bidirectional, bias):
    options = {"nonlinearity": nonlinearity, "bidirectional": bidirectional, "bias": bias}
    rnn = double(nn.RNN, K, H, 2, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if name.startswith("weight_hh"):
                parameter.copy_(torch.diag(numbers(H)))
    module = double(IndRNN, K, H, 2, **options)
    load_rnn(module, rnn)
    x, hx = numbers(T, B, K), numbers(4 if bidirectional else 2, B, H)
    torch.testing.assert_close(module(x, hx), rnn(x, hx))
    back = to_rnn(module.eval())
    assert isinstance(back, nn.RNN)
    assert not back.training
    torch.testing.assert_close(back(x, hx), rnn(x, hx))


def test_rnn_cell_and_back():
    cell = double(nn.RNNCell, K, H)
    with torch.no_grad():
        cell.weight_hh.copy_(torch.diag(numbers(H)))
    module = double(IndRNNCell, K, H, nonlinearity="tanh")
    load_rnn(module, cell)
    x, h = numbers(B, K), numbers(B, H)
    torch.testing.assert_close(module(x, h), cell(x, h))
    torch.testing.assert_close(to_rnn(module)(x, h), cell(x, h))


def test_rnn_without_biases_into_a_layer_with_them():
    rnn = double(nn.RNN, K, H, bias=False, nonlinearity="relu")
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.diag(numbers(H)))
    module = double(IndRNN, K, H)
    with torch.no_grad():
        module.bias_ih_l0.fill_(9)
    load_rnn(module, rnn)
    x = numbers(T, B, K)
    torch.testing.assert_close(module(x), rnn(x))


def test_layers_from_a_linear_and_a_vector():
    linear, u = double(nn.Linear, K, H), numbers(H)
    module = double(IndRNN, K, H, bidirectional=True)
    load_layers(
        module, [(linear.weight, linear.bias, u), (linear.weight.detach().numpy(), None, u)]
    )
    assert torch.equal(module.weight_ih_l0, linear.weight)
    assert torch.equal(module.weight_ih_l0_reverse, linear.weight)
    x = numbers(T, B, K)
    state = {"input_kernel": linear.weight.T, "recurrent_kernel": u, "bias": linear.bias}
    forwards = run_tensorflow(state, x)
    backwards = run_tensorflow(state | {"bias": torch.zeros(H)}, x.flip(0)).flip(0)
    torch.testing.assert_close(module(x)[0], torch.cat([forwards, backwards], -1))
