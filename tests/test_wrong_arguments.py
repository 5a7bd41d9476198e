"""Swapped arguments and wrong kinds, values and shapes: one line that names the argument."""

import math

import pytest
import torch
from torch import nn

from fastindrnn import (
    Bidirectional,
    DenseIndRNN,
    IndRNN,
    IndRNNCell,
    ResidualIndRNN,
    init,
    parameter_groups,
)
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


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, 7), {}, ValueError, "input_size must be positive, but is 0"),
        ((5, -1), {}, ValueError, "hidden_size must be positive, but is -1"),
        ((5, 7, 0), {}, ValueError, "num_layers must be positive, but is 0"),
        ((5.0, 7), {}, TypeError, "input_size must be an int, but is float"),
        ((5, 7, True), {}, TypeError, "num_layers must be an int, but is bool"),
        ((5, 7), {"bias": 1}, TypeError, "bias must be a bool, but is int"),
        ((5, 7), {"batch_first": "yes"}, TypeError, "batch_first must be a bool, but is str"),
        ((5, 7), {"bidirectional": 2}, TypeError, "bidirectional must be a bool, but is int"),
        ((5, 7), {"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of.*'gelu'"),
        ((5, 7), {"nonlinearity": None}, TypeError, "nonlinearity must be a string.*NoneType"),
        ((5, 7), {"dropout": 1.5}, ValueError, "dropout must be .* but is 1.5"),
        ((5, 7), {"recurrent_max": float("nan")}, ValueError, "recurrent_max must be.*nan"),
        ((5, 7), {"recurrent_max": 0}, ValueError, "recurrent_max must be.*0"),
        ((5, 7), {"recurrent_init": [None] * 3}, ValueError, "recurrent_init must have.*1.*has 3"),
        ((5, 7), {"grad_clip": -1.0}, ValueError, "grad_clip must be positive.*-1"),
        ((5, 7), {"grad_clip": "big"}, TypeError, "grad_clip must be a number.*str"),
        ((5, 7), {"grad_clip_mode": "all"}, ValueError, "grad_clip_mode must be.*'all'"),
    ],
)
def test_wrong_constructor_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        IndRNN(*arguments, **options)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((4, 3, 6), {}, r"input must be .*5.*\(4, 3, 6\)"),
        ((5,), {}, r"input must be .*\(5,\)"),
        ((2, 4, 3, 5), {}, r"input must be .*\(2, 4, 3, 5\)"),
        ((4, 3, 5), {"hx": torch.zeros(1, 3, 7)}, r"hx must be \(2, 3, 7\), but is \(1, 3, 7\)"),
        ((4, 5), {"hx": torch.zeros(2, 1, 7)}, r"hx must be \(2, 7\), but is \(2, 1, 7\)"),
        ((4, 3, 5), {"lengths": torch.tensor([4, 4])}, r"lengths must be \(3,\)"),
        ((4, 3, 5), {"lengths": torch.tensor([5, 4, 4])}, r"lengths must be from 0 to 4"),
    ],
)
def test_wrong_inputs(shape, options, words):
    with pytest.raises(ValueError, match=words):
        IndRNN(5, 7, 2)(torch.randn(shape), **options)


@pytest.mark.parametrize(("make", "features"), [(IndRNN, 7), (ResidualIndRNN, 7), (DenseIndRNN, 2)])
def test_input_of_another_dtype_or_device(make, features):
    """The error says what to do with the input, whose caller knows no weight."""
    module = make(5, features)
    words = r"weight must be torch\.float64.*take input\.to\(torch\.float32\)"
    with pytest.raises(TypeError, match=words):
        module(torch.randn(4, 3, 5).double())
    with pytest.raises(ValueError, match=r"weight must be on meta.*take input\.to\('cpu'\)"):
        module(torch.randn(4, 3, 5, device="meta"))


def test_states_are_called_what_the_caller_calls_them():
    x, h = torch.randn(4, 3, 5), torch.zeros(2, 3, 7)
    with pytest.raises(ValueError, match=r"^hx must be on cpu as the input, but is on meta"):
        IndRNN(5, 7, 2)(x, h.to("meta"))
    with pytest.raises(TypeError, match=r"^hx must be float32.*int64"):
        IndRNN(5, 7, 2)(x, h.long())
    with pytest.raises(ValueError, match=r"^state must be on cpu as the input, but is on meta"):
        IndRNN(5, 7, 2).step(x[0], h.to("meta"))
    with pytest.raises(ValueError, match=r"^hx must be on cpu as the input, but is on meta"):
        IndRNNCell(5, 7)(x[0], h[0].to("meta"))


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([4, 4, 4], TypeError, r"lengths must be a tensor, but is list: take torch\.tensor"),
        (torch.full((4,), 2), ValueError, r"\(12,\), but is \(4,\): one for each sequence"),
        (torch.arange(-1, 11), ValueError, "lengths must be from 0 to 4.*is from -1 to 10$"),
    ],
)
def test_wrong_lengths(lengths, error, words):
    with pytest.raises(error, match=words):
        IndRNN(5, 7, 2)(torch.randn(4, 12, 5), lengths=lengths)


def test_bias_of_the_cell_is_a_bool():
    with pytest.raises(TypeError, match="bias must be a bool, but is Tensor"):
        IndRNNCell(5, 7, torch.zeros(7))


@pytest.mark.parametrize(
    ("shape", "hx", "words"),
    [
        ((3, 4), None, r"input must be \(batch, 5\)"),
        ((3, 2, 5), None, r"input must be \(batch, 5\)"),
        ((3, 5), torch.zeros(7), r"hx must be \(3, 7\), but is \(7,\)"),
    ],
)
def test_wrong_inputs_of_the_cell(shape, hx, words):
    with pytest.raises(ValueError, match=words):
        IndRNNCell(5, 7)(torch.randn(shape), hx)


WRONG = [
    (ResidualIndRNN, (0, 5), {}, ValueError, "input_size must be positive, but is 0"),
    (ResidualIndRNN, (4, 5, 0), {}, ValueError, "num_blocks must be positive, but is 0"),
    (ResidualIndRNN, (4, 5), {"norm": "group"}, ValueError, "norm must be one of.*'group'"),
    (ResidualIndRNN, (4, 5), {"norm_position": "in"}, ValueError, "norm_position must be.*'in'"),
    (ResidualIndRNN, (4, 5), {"norm_steps": 9}, ValueError, "norm_steps must be.*9"),
    (ResidualIndRNN, (4, 5, 1), {"recurrent_init": [None]}, ValueError, "each of 3 layers.*has 1"),
    (ResidualIndRNN, (4, 5), {"dropout": -0.1}, ValueError, "dropout must be a prob.*-0.1"),
    (ResidualIndRNN, (4, 5), {"recurrent_max": -1.0}, ValueError, "recurrent_max must be.*-1"),
    (ResidualIndRNN, (4, 5), {"nonlinearity": "elu"}, ValueError, "nonlinearity must be.*'elu'"),
    (DenseIndRNN, (4, 0), {}, ValueError, "growth must be positive, but is 0"),
    (DenseIndRNN, (4, 2, ()), {}, ValueError, r"blocks must be a sequence.*\(\)"),
    (DenseIndRNN, (4, 2, 8), {}, ValueError, "blocks must be a sequence.*8"),
    (DenseIndRNN, (4, 2, (2, 0)), {}, ValueError, r"blocks\[1\] must be positive, but is 0"),
    (DenseIndRNN, (4, 2), {"norm": "batch_per_step"}, ValueError, "norm_steps must be.*None"),
    (DenseIndRNN, (4, 2), {"first_features": -1}, ValueError, "first_features must be pos.*-1"),
    (DenseIndRNN, (4, 2), {"last_features": 1.0}, TypeError, "last_features must be an int"),
    (DenseIndRNN, (4, 2), {"grad_clip": 0}, ValueError, "grad_clip must be positive"),
    (IndRNN, (4, 5), {"norm": "batch_per_step", "norm_steps": 0}, ValueError, "must be positive"),
    (IndRNN, (4, 5), {"zoneout": 1.5}, ValueError, r"zoneout must be a probability.*1\.5"),
    (ResidualIndRNN, (4, 5), {"bias": None}, TypeError, "bias must be a bool, but is NoneType"),
    (ResidualIndRNN, (4, 5), {"batch_first": 1}, TypeError, "batch_first must be a bool.*int"),
    (DenseIndRNN, (4, 2), {"bias": "no"}, TypeError, "bias must be a bool, but is str"),
    (DenseIndRNN, (4, 2), {"batch_first": "yes"}, TypeError, "batch_first must be a bool.*str"),
    (Bidirectional, (lambda: nn.Linear(2, 3),), {}, TypeError, "factory must make.*Linear"),
    (Bidirectional, (lambda: RNN,), {}, ValueError, "factory must make a new stack.*one twice"),
    (Bidirectional, (RNN,), {}, TypeError, "factory must be a function.*lambda.*is IndRNN"),
    (Bidirectional, (None,), {}, TypeError, "factory must be a function.*is NoneType"),
]


@pytest.mark.parametrize(("make", "arguments", "options", "error", "words"), WRONG)
def test_wrong_arguments(make, arguments, options, error, words):
    with pytest.raises(error, match=words):
        make(*arguments, **options)
