"""Bounds of the recurrent weights: where there is nothing to bound, an error says so."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fastindrnn import IndRNN, constrain_, constrain_after_step, recurrent_max_for


def bounded():
    return IndRNN(3, 4, recurrent_max=1.5)


def test_bound_of_an_endless_stream():
    assert recurrent_max_for(None) == 1.0
    assert recurrent_max_for(100, 4) == pytest.approx(4**0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "T must be at least 1"),
        ((1.5,), TypeError, "T must be an int or None"),
        ((True,), TypeError, "T must be an int or None"),
        ((10, -1.0), ValueError, "gamma must be positive"),
        ((10, float("inf")), ValueError, "gamma must be positive and finite"),
        ((10, "2"), TypeError, "gamma must be a float"),
    ],
)
def test_wrong_arguments_of_the_bound(arguments, error, text):
    with pytest.raises(error, match=text):
        recurrent_max_for(*arguments)


def test_no_bound_is_an_error():
    model = nn.Sequential(IndRNN(3, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="give one recurrent_max"):
        constrain_(model)
    with pytest.raises(ValueError, match="give one recurrent_max"):
        constrain_after_step(torch.optim.SGD(model.parameters()), model)


def test_another_optimizer_is_an_error():
    rnn = bounded()
    other = torch.optim.SGD(copy.deepcopy(rnn).parameters())
    with pytest.raises(ValueError, match="holds no recurrent weight"):
        constrain_after_step(other, rnn)


def test_a_parametrized_weight_is_an_error():
    rnn = bounded()
    parametrizations.weight_norm(rnn, "weight_ih_l0")
    constrain_(rnn)
    nn.utils.parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Tanh())
    with pytest.raises(ValueError, match="weight_hh_l0 is parametrized"):
        constrain_(rnn)


def test_swapped_arguments():
    rnn = bounded()
    optimizer = torch.optim.SGD(rnn.parameters())
    with pytest.raises(TypeError, match="optimizer must be an Optimizer, but is IndRNN"):
        constrain_after_step(rnn, optimizer)
    with pytest.raises(TypeError, match="module must be a Module, but is SGD"):
        constrain_(optimizer)
