"""What does not fit is an error, and leaves the module as it was."""

import copy

import pytest
import torch
from interop_cases import HASTE, TENSORFLOW, H, K, kernels, numbers, plain_network
from torch import nn

from fastindrnn import IndRNN, IndRNNCell, ResidualIndRNN
from fastindrnn.interop import (
    load_authors,
    load_haste,
    load_layers,
    load_rnn,
    load_tensorflow,
    to_authors,
    to_haste,
    to_rnn,
    to_tensorflow,
)


def rnn(**options):
    layer = nn.RNN(K, H, **({"nonlinearity": "relu"} | options))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("weight_hh"):
                parameter.copy_(torch.diag(parameter.diagonal()))
    return layer


def full_rnn():
    layer = rnn()
    with torch.no_grad():
        layer.weight_hh_l0[1, 2] = 0.5
        layer.weight_hh_l0[3, 2] = 1e-30
    return layer


def changed(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        key = key.replace("__", ".")
        state.pop(key, None)
        if value is not None:
            state[key] = value
    return state


TF = kernels(TENSORFLOW, 1)[0]
PLAIN = plain_network(None, 1)[0].state
HASTE_STATE = kernels(HASTE, 1)[0]
WRONG = [
    (load_tensorflow, IndRNN(K, H), changed(TF, bias=None), r"states\[0\] lacks 'bias', .*\(7,\)"),
    (load_tensorflow, IndRNN(K, H), changed(TF, gate=numbers(2)), r"also has 'gate', \(2,\)"),
    (
        load_tensorflow,
        IndRNN(K, H),
        changed(TF, input_kernel=numbers(H, K)),
        r"'input_kernel' must be \(5, 7\), but is \(7, 5\)",
    ),
    (load_tensorflow, IndRNN(K, H, 2), TF, "states must hold 2 dictionaries.* but hold 1"),
    (load_tensorflow, IndRNN(K, H, norm="batch"), TF, "module must have no norm, but has norm="),
    (load_tensorflow, IndRNN(K, H, bias=False), TF, r"bias must be 0 for a module with bias=False"),
    (
        load_tensorflow,
        IndRNN(K, H),
        {f"{scope}/{key}": value for scope in "ab" for key, value in TF.items()},
        r"states\[0\] must be of one layer",
    ),
    (load_haste, IndRNN(K, H, 1, "tanh", norm="batch"), HASTE_STATE, "must have no norm, but has"),
    (load_haste, IndRNN(K, H), HASTE_STATE, "nonlinearity must be 'tanh', but is 'relu'"),
    (load_haste, IndRNN(K, H, 1, "tanh"), TF, r"states\[0\] lacks 'kernel', .*\(5, 7\)"),
    (load_rnn, IndRNN(K, H), full_rnn(), "weight_hh_l0 must be diagonal, but 2 of its other"),
    (load_rnn, IndRNN(K, H), rnn(nonlinearity="tanh"), "nonlinearity must be 'tanh', but is"),
    (load_rnn, IndRNN(K, H), rnn(num_layers=2), r"rnn.num_layers must be the module's 1, but is 2"),
    (load_rnn, IndRNN(K, H), rnn(bidirectional=True), r"rnn.bidirectional must be .* False"),
    (load_rnn, IndRNN(K, H + 1), rnn(), r"rnn.hidden_size must be the module's 8, but is 7"),
    (load_rnn, IndRNN(K, H, bias=False), rnn(), "rnn_l0's bias must be 0 for a module with bias="),
    (load_authors, IndRNN(K, H), changed(PLAIN, DIs__0__fc__bias=None), "lacks 'DIs.0.fc.bias'"),
    (load_authors, IndRNN(K, H), changed(PLAIN, gate=numbers(2)), r"also has 'gate', \(2,\)"),
    (
        load_authors,
        IndRNN(K, H),
        changed(PLAIN, DIs__0__fc__weight=numbers(H, H)),
        r"'DIs.0.fc.weight' must be \(7, 5\), but is \(7, 7\)",
    ),
    (load_authors, IndRNN(K, H, norm="batch"), PLAIN, "lacks 'RNNs.0.norm1.bn.weight'"),
    (
        load_authors,
        IndRNN(K, H, norm="layer"),
        PLAIN,
        "'batch_per_step' or None, but is a LayerNorm",
    ),
    (
        load_authors,
        IndRNN(K, H),
        PLAIN | {"decoder.bias": numbers(3)},
        r"also has 'decoder.bias', \(3,\)",
    ),
    (load_authors, IndRNN(K, H, bidirectional=True), PLAIN, "one direction, but is bidirectional"),
    (load_authors, IndRNN(K, H, 1, "tanh"), PLAIN, "nonlinearity must be 'relu', but is 'tanh'"),
    (load_authors, ResidualIndRNN(K, H, 1, "tanh"), PLAIN, "must be 'relu', but is 'tanh'"),
    (load_authors, IndRNN(K, H, zoneout=0.1), PLAIN, "zoneout must be 0: the authors'"),
    (load_rnn, IndRNN(K, H, zoneout=0.1), rnn(), r"zoneout must be 0\.0, but is 0\.1"),
    (load_layers, IndRNN(K, H), [], "layers must be 1, as in the module, but are 0"),
    (
        load_layers,
        IndRNN(K, H),
        [(numbers(H, K), None, numbers(H, 1))],
        r"layers\[0\]'s 'u' must be \(7,\), but is \(7, 1\)",
    ),
]


@pytest.mark.parametrize(("load", "module", "state", "message"), WRONG)
def test_errors_leave_the_module_as_it_was(load, module, state, message):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        load(module, state)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed"


def test_wrong_modules():
    for load in (load_layers, load_tensorflow, load_rnn):
        with pytest.raises(TypeError, match="must be an IndRNN or IndRNNCell, but is Linear"):
            load(nn.Linear(K, H), [])
    with pytest.raises(TypeError, match="ResidualIndRNN or DenseIndRNN, but is Linear"):
        load_authors(nn.Linear(K, H), {})
    with pytest.raises(TypeError, match=r"rnn must be an nn\.RNN, but is GRU"):
        load_rnn(IndRNN(K, H), nn.GRU(K, H))
    with pytest.raises(ValueError, match="nonlinearity must be 'relu' or 'tanh', but is 'relu6'"):
        to_rnn(IndRNN(K, H, 1, "relu6"))
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh', but is 'relu'"):
        to_haste(IndRNN(K, H))
    with pytest.raises(ValueError, match="module must have no norm"):
        to_tensorflow(IndRNN(K, H, norm="layer"))


LOADERS = [load_authors, load_haste, load_layers, load_rnn, load_tensorflow]


@pytest.mark.parametrize("load", LOADERS)
def test_swapped_arguments(load):
    module = IndRNN(K, H, 1, "tanh" if load is load_haste else "relu")
    source = rnn() if load is load_rnn else {}
    with pytest.raises(TypeError, match="module must be an IndRNN"):
        load(source, module)


@pytest.mark.parametrize(
    ("load", "source", "words"),
    [
        (load_authors, nn.Linear(2, 2), "state must be a dictionary of tensors.*but is Linear"),
        (load_haste, 5, "states must be a dictionary or a list of them, but is int"),
        (load_tensorflow, [5], r"states\[0\] must be a dictionary of tensors.*but is int"),
        (load_layers, [torch.rand(3)], r"layers must be a list of tuples .* a list of Tensor"),
        (load_layers, torch.rand(3), r"layers must be a list of tuples .* but is Tensor"),
    ],
)
def test_wrong_kinds(load, source, words):
    module = IndRNN(K, H, 1, "tanh" if load is load_haste else "relu")
    with pytest.raises(TypeError, match=words):
        load(module, source)


def test_bounds_are_numbers():
    with pytest.raises(TypeError, match="recurrent_max_abs must be a number, but is str"):
        load_tensorflow(IndRNN(K, H), TF, recurrent_max_abs="1")


def test_what_is_exported_is_a_copy():
    """Also where the transposed weight lies in memory as the weight does."""
    module = IndRNNCell(1, H)
    for state in (*to_tensorflow(module), to_authors(module)):
        for value in state.values():
            value.fill_(7)
    assert not any((parameter == 7).any() for parameter in module.parameters())
