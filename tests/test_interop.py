"""Weights of other implementations: each against a loop with that implementation's own formula."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fastindrnn import DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN
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

T, B, K, H = 11, 3, 5, 7


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64)


def double(kind, *sizes, **options):
    return kind(*sizes, dtype=torch.float64, **options)


# The authors' networks, as formulas over a state dict with their names. x is (T, B, features).


class Authors:
    """Their modules by name: a projection, a batch norm in evaluation, the recurrence, and both."""

    def __init__(self, position=None, fc=".fc", recurrent=".indrnn1"):
        self.state, self.position, self.fc, self.recurrent = {}, position, fc, recurrent

    def make_linear(self, name, inputs, outputs):
        self.state[f"{name}{self.fc}.weight"] = numbers(outputs, inputs) / inputs**0.5
        self.state[f"{name}{self.fc}.bias"] = numbers(outputs)

    def make_act(self, name, features, norm=None):
        self.state[f"{name}{self.recurrent}.weight_hh"] = torch.rand(features).double()
        if self.position:
            norm = norm or f"{name}.norm1"
            self.state |= {
                f"{norm}.bn.weight": numbers(features),
                f"{norm}.bn.bias": numbers(features),
                f"{norm}.bn.running_mean": numbers(features),
                f"{norm}.bn.running_var": torch.rand(features).double() + 0.5,
                f"{norm}.bn.num_batches_tracked": torch.tensor(9),
            }

    def linear(self, name, x):
        return x @ self.state[f"{name}{self.fc}.weight"].T + self.state[f"{name}{self.fc}.bias"]

    def norm(self, name, x):
        s = {key: self.state[f"{name}.bn.{key}"] for key in ("weight", "bias")}
        mean, var = (self.state[f"{name}.bn.running_{key}"] for key in ("mean", "var"))
        return (x - mean) / torch.sqrt(var + 1e-5) * s["weight"] + s["bias"]

    def act(self, name, x, norm=None):
        norm = norm or f"{name}.norm1"
        if self.position == "before":
            x = self.norm(norm, x)
        h, rows = torch.zeros_like(x[0]), []
        for x_t in x:
            h = torch.relu(x_t + self.state[f"{name}{self.recurrent}.weight_hh"] * h)
            rows.append(h)
        y = torch.stack(rows)
        return self.norm(norm, y) if self.position == "after" else y


def plain_network(position, layers=3):
    net = Authors(position)
    for i in range(layers):
        net.make_linear(f"DIs.{i}", H if i else K, H)
        net.make_act(f"RNNs.{i}", H)

    def run(x):
        for i in range(layers):
            x = net.act(f"RNNs.{i}", net.linear(f"DIs.{i}", x))
        return x

    norm = {"norm": "batch", "norm_position": position} if position else {}
    return net, run, double(IndRNN, K, H, layers, **norm)


def first_plain_network(position):
    """Of their first version: other names, the norm always after."""
    net = Authors("after", "", "")
    for i in range(2):
        net.make_linear(f"DIs.{i}", H if i else K, H)
        net.make_act(f"RNNs.{i}", H, f"BNs.{i}")

    def run(x):
        for i in range(2):
            x = net.act(f"RNNs.{i}", net.linear(f"DIs.{i}", x), f"BNs.{i}")
        return x

    return net, run, double(IndRNN, K, H, 2, norm="batch")


def residual_network(position, blocks=2):
    net = Authors(position)
    net.make_linear("features.fc0", K, H)
    names = [f"features.resblock{i + 1}" for i in range(blocks)]
    for name in names:
        for i in (1, 2):
            net.make_act(f"{name}.IndRNNwithBN{i}", H)
            net.make_linear(f"{name}.fc{i}", H, H)
    net.make_act("features.IndRNNwithBN_last", H)

    def run(x):
        x = net.linear("features.fc0", x)
        for name in names:
            y = net.linear(f"{name}.fc1", net.act(f"{name}.IndRNNwithBN1", x))
            x = x + net.linear(f"{name}.fc2", net.act(f"{name}.IndRNNwithBN2", y))
        return net.act("features.IndRNNwithBN_last", x)

    options = {"norm": "batch", "norm_position": position} if position else {"norm": None}
    return net, run, double(ResidualIndRNN, K, H, blocks, **options)


def dense_network(position, growth=3, blocks=(2, 1)):
    net, features, walk = Authors(position), 6 * growth, []

    def unit(fc, recurrent, inputs, outputs):
        net.make_linear(fc, inputs, outputs)
        net.make_act(recurrent, outputs)
        return lambda x: net.act(recurrent, net.linear(fc, x))

    def concatenated(layer):
        return lambda x: torch.cat([x, layer(x)], 2)

    walk.append(unit("features.fc0", "features.IndRNNwithBN0", K, features))
    for i, layers in enumerate(blocks):
        for j in range(layers):
            name = f"features.denseblock{i + 1}.denselayer{j + 1}"
            one = unit(f"{name}.fc1", f"{name}.IndRNNwithBN1", features, 4 * growth)
            two = unit(f"{name}.fc2", f"{name}.IndRNNwithBN2", 4 * growth, growth)
            walk.append(concatenated(lambda x, one=one, two=two: two(one(x))))
            features += growth
        name = f"features.transition{i + 1}" if i < len(blocks) - 1 else "features.lastlayer"
        walk.append(unit(f"{name}.fc", f"{name}.IndRNNwithBN", features, features // 2))
        features //= 2

    def run(x):
        for part in walk:
            x = part(x)
        return x

    options = {"norm": "batch", "norm_position": position} if position else {"norm": None}
    return net, run, double(DenseIndRNN, K, growth, blocks, **options)


NETWORKS = [plain_network, residual_network, dense_network]


@pytest.mark.parametrize("position", [None, "after", "before"])
@pytest.mark.parametrize("network", NETWORKS)
def test_authors(network, position):
    net, run, module = network(position)
    state = net.state | {"classifier.weight": numbers(2, H), "classifier.bias": numbers(2)}
    head = load_authors(module, state)
    assert set(head) == {"weight", "bias"}
    assert torch.equal(head["weight"], state["classifier.weight"])
    x = numbers(T, B, K)
    torch.testing.assert_close(module.eval()(x)[0], run(x))
    back = to_authors(module)
    assert back.keys() == net.state.keys()
    for key, value in net.state.items():
        assert torch.equal(back[key], value), key


def test_authors_first_version():
    net, run, module = first_plain_network(None)
    assert load_authors(module, net.state) == {}
    x = numbers(T, B, K)
    torch.testing.assert_close(module.eval()(x)[0], run(x))


def test_authors_loop_data_parallel_and_old_counters():
    """Their recurrence without CUDA keeps a cell and zeros; DataParallel writes a prefix; PyTorch
    before 0.4.1 counted no batches."""
    net, run, module = plain_network("before")
    state = {}
    for key, value in net.state.items():
        if not key.endswith("num_batches_tracked"):
            key = key.replace("indrnn1.weight_hh", "indrnn1.cells.0.weight_hh")
            state[f"module.{key}"] = value
    state |= {f"module.RNNs.{i}.indrnn1.h0": torch.zeros(H) for i in range(3)}
    load_authors(module, state)
    x = numbers(T, B, K)
    torch.testing.assert_close(module.eval()(x)[0], run(x))


def test_authors_cell():
    net, run, _ = plain_network(None, layers=1)
    cell = double(IndRNNCell, K, H)
    load_authors(cell, net.state)
    x = numbers(1, B, K)
    torch.testing.assert_close(cell(x[0]), run(x)[0])


# One layer of the TensorFlow cell, and of Haste, over (T, B, K).


def run_tensorflow(state, x, activation=torch.relu, bounds=None):
    u = state["recurrent_kernel"]
    u = u if bounds is None else torch.clamp(u, *bounds)
    h, rows = x.new_zeros(x.shape[1], len(u)), []
    for x_t in x:
        h = activation(x_t @ state["input_kernel"] + h * u + state["bias"])
        rows.append(h)
    return torch.stack(rows)


def run_haste(state, x, zoneout=0.0):
    h, rows = x.new_zeros(x.shape[1], len(state["bias"])), []
    for projected in x @ state["kernel"] + state["bias"]:
        new = torch.tanh(projected + h * state["recurrent_scale"])
        h = zoneout * h + (1 - zoneout) * new
        rows.append(h)
    return torch.stack(rows)


def kernels(names, layers):
    sizes = [K] + [H] * (layers - 1)
    shapes = [((size, H), (H,), (H,)) for size in sizes]
    return [dict(zip(names, [numbers(*s) for s in shape], strict=True)) for shape in shapes]


TENSORFLOW = ("input_kernel", "recurrent_kernel", "bias")
HASTE = ("kernel", "recurrent_scale", "bias")


@pytest.mark.parametrize("bounds", [None, (0.0, 0.5)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_tensorflow(activation, bounds):
    states = kernels(TENSORFLOW, 2)
    module = double(IndRNN, K, H, 2, activation)
    load_tensorflow(module, states, recurrent_bounds=bounds)
    x = expected = numbers(T, B, K)
    for state in states:
        expected = run_tensorflow(state, expected, getattr(torch, activation), bounds)
    torch.testing.assert_close(module(x)[0], expected)
    for state in to_tensorflow(module):
        x = run_tensorflow(state, x, getattr(torch, activation))
    torch.testing.assert_close(x, expected)


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


def test_haste_with_another_zoneout():
    for module in (IndRNN(K, H, 1, "tanh"), IndRNNCell(K, H, nonlinearity="tanh")):
        with pytest.raises(ValueError, match=r"module's zoneout must be 0\.1, but is 0\.0"):
            load_haste(module, kernels(HASTE, 1)[0], zoneout=0.1)


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
    (load_authors, IndRNN(K, H, norm="layer"), PLAIN, "norm must be 'batch' or None, but is a"),
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
