"""Swapped arguments and wrong kinds, of what is not a layer: one line that names the argument."""

import math

import pytest
import torch
from torch import nn

from fastindrnn import IndRNN, IndRNNCell, init, parameter_groups
from fastindrnn.fold import fold_norms
from fastindrnn.memory import LayerMemory, activity, half_life, plot, read_memory

U, RNN = torch.rand(4), IndRNN(3, 4)
X = torch.randn(5, 2, 3)
LAYERS = [LayerMemory("weight_hh_l0", U.double())]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: init.uniform_(0.0, U), TypeError, "u must be a tensor, but is float"),
        (
            lambda: init.uniform_(U.long()),
            TypeError,
            r"u must be of a floating dtype.*torch\.int64",
        ),
        (lambda: init.uniform_(U, high="1"), TypeError, "high must be a number, but is str"),
        (
            lambda: init.uniform_(U, 1.0, 0.5),
            ValueError,
            r"low must be at most high.*1\.0 and 0\.5",
        ),
        (lambda: init.uniform_(U, high=math.inf), ValueError, "high must be finite, but is inf"),
        (lambda: init.long_memory_(100, U), TypeError, "u must be a tensor, but is int"),
        (lambda: init.long_memory_(U, 10.0), TypeError, "T must be an int, but is float"),
        (lambda: init.long_memory_(U, 10, "2"), TypeError, "gamma must be a number, but is str"),
        (lambda: init.long_memory_(U, 10, 0.5), ValueError, "T and gamma must be at least 1"),
        (lambda: init.identity_(U, None), TypeError, "scale must be a number, but is NoneType"),
        (lambda: init.identity_(1.0), TypeError, "u must be a tensor, but is float"),
        (lambda: init.normal_(U, std=-1.0), ValueError, "std must be at least 0, but is -1"),
        (lambda: init.normal_(U, U), TypeError, "mean must be a number, but is Tensor"),
        (lambda: parameter_groups(1e-4, RNN), TypeError, "module must be a Module, but is float"),
        (
            lambda: parameter_groups(RNN.parameters(), 1e-4),
            TypeError,
            "module must be a Module, but is generator",
        ),
        (lambda: parameter_groups(RNN, "0"), TypeError, "weight_decay must be a number.*str"),
        (lambda: parameter_groups(RNN, math.inf), ValueError, "weight_decay must be finite"),
        (lambda: fold_norms(RNN.state_dict()), TypeError, "module must be a Module.*OrderedDict"),
        (lambda: fold_norms(nn.Linear(2, 3)), ValueError, "module must be or hold.*a Linear"),
        (lambda: fold_norms(IndRNNCell(2, 3)), ValueError, "module must be or hold.*IndRNNCell"),
        (lambda: half_life(0.5), TypeError, "u must be a tensor of a floating dtype.*float"),
        (lambda: half_life(U.long()), TypeError, r"u must be a tensor of a floating.*torch\.int64"),
        (lambda: read_memory([X], RNN), TypeError, "source must be a module or a dict.*list"),
        (lambda: read_memory(RNN, 5), TypeError, "batches must be an iterable.*int"),
        (lambda: read_memory(RNN, X), TypeError, r"batches must be an iterable.* as \[x\]"),
        (lambda: activity(X, RNN), TypeError, "module must be a Module, but is Tensor"),
        (lambda: plot(RNN), TypeError, "layers must be what read_memory returns.*IndRNN"),
        (lambda: plot([U]), TypeError, "layers must be what read_memory returns"),
        (lambda: plot([]), ValueError, "layers must hold at least one layer"),
        (lambda: plot(LAYERS, LAYERS), TypeError, "states must be what activity returns.*list"),
        (lambda: plot(LAYERS, neurons=0), ValueError, "neurons must be positive, but is 0"),
        (lambda: plot(LAYERS, neurons=1.5), TypeError, "neurons must be an int, but is float"),
    ],
)
def test_one_line_that_names_the_argument(call, error, words):
    before = U.clone()
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert torch.equal(U, before)
