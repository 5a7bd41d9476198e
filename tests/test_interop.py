"""Weights of other implementations: each against a loop with that implementation's own formula."""

import copy
import math

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
from fastindrnn.norm import StepBatchNorm
from fastindrnn.sequences import Sequences

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


def dense_network(position, growth=3, blocks=(2, 1), last=True):
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
        if i == len(blocks) - 1 and not last:
            break
        name = f"features.transition{i + 1}" if i < len(blocks) - 1 else "features.lastlayer"
        walk.append(unit(f"{name}.fc", f"{name}.IndRNNwithBN", features, features // 2))
        features //= 2

    def run(x):
        for part in walk:
            x = part(x)
        return x

    options = {"norm": "batch", "norm_position": position} if position else {"norm": None}
    options["last_features"] = None if last else 0
    return net, run, double(DenseIndRNN, K, growth, blocks, **options)


def dense_network_without_last_transition(position):
    return dense_network(position, last=False)


NETWORKS = [plain_network, residual_network, dense_network, dense_network_without_last_transition]


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


@pytest.mark.parametrize("cell", ["cells.0", "indrnn_cell"])
def test_authors_loop_data_parallel_and_old_counters(cell):
    """Their recurrence without CUDA kept a list of cells and zeros before 2019, and keeps one cell
    since; DataParallel writes a prefix; PyTorch before 0.4.1 counted no batches."""
    net, run, module = plain_network("before")
    state = {}
    for key, value in net.state.items():
        if not key.endswith("num_batches_tracked"):
            key = key.replace("indrnn1.weight_hh", f"indrnn1.{cell}.weight_hh")
            state[f"module.{key}"] = value
    if cell == "cells.0":
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


# The authors' language models: an embedding, a stack with norms per step, in the plain and the
# residual one another layer, with bn_before another norm, a decoder. Tokens are (T, B).

TOKENS, STEPS = 13, 4 * 3 + 1


class Language(Authors):
    """As `Authors`, with a norm of each time step by its own statistics."""

    def make_norm(self, name, features):
        self.state |= {
            f"{name}.weight": numbers(features),
            f"{name}.bias": numbers(features),
            f"{name}.running_mean": numbers(STEPS, features),
            f"{name}.running_var": torch.rand(STEPS, features).double() + 0.5,
            f"{name}.num_batches_tracked": torch.tensor(9),
        }

    def make_act(self, name, features):
        self.state[f"{name}{self.recurrent}.weight_hh"] = torch.rand(features).double()
        self.make_norm(f"{name}.norm1", features)

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        rows = [
            (row - mean[t]) / torch.sqrt(var[t] + 1e-5) * weight + bias for t, row in enumerate(x)
        ]
        return torch.stack(rows)

    def model(self, stack, behind, extra):
        """Tokens to the logits of the whole network; `extra` is the name of the last norm."""
        self.state["encoder.weight"] = numbers(TOKENS, K)
        self.state["decoder.weight"], self.state["decoder.bias"] = numbers(TOKENS, K), numbers(13)
        if self.position == "before":
            self.make_norm(extra, K)

        def run(tokens):
            y = behind(stack(self.state["encoder.weight"][tokens]))
            y = self.norm(extra, y) if self.position == "before" else y
            return y @ self.state["decoder.weight"].T + self.state["decoder.bias"]

        return run

    def last_layer(self):
        self.make_linear("last_fc", H, K)
        self.make_act("last_indrnn", K)
        return lambda x: self.act("last_indrnn", self.linear("last_fc", x))


def language_options(position):
    return {"norm": "batch_per_step", "norm_position": position, "norm_steps": STEPS}


def plain_language_model(position):
    net = Language(position)
    for i in range(2):
        net.make_linear(f"DIs.{i}", H if i else K, H)
        net.make_act(f"RNNs.{i}", H)

    def stack(x):
        for i in range(2):
            x = net.act(f"RNNs.{i}", net.linear(f"DIs.{i}", x))
        return x

    run = net.model(stack, net.last_layer(), "extra_bn")
    return net, run, double(IndRNN, K, H, 2, **language_options(position))


def residual_language_model(position):
    net, names = Language(position), ["resblocks.0", "resblocks.1"]
    net.make_linear("fc0", K, H)
    for name in names:
        for i in (1, 2):
            net.make_act(f"{name}.IndRNNwithBN{i}", H)
            net.make_linear(f"{name}.fc{i}", H, H)
    net.make_act("IndRNNwithBN_resfinal", H)

    def stack(x):
        x = net.linear("fc0", x)
        for name in names:
            y = net.linear(f"{name}.fc1", net.act(f"{name}.IndRNNwithBN1", x))
            x = x + net.linear(f"{name}.fc2", net.act(f"{name}.IndRNNwithBN2", y))
        return net.act("IndRNNwithBN_resfinal", x)

    run = net.model(stack, net.last_layer(), "extra_bn")
    return net, run, double(ResidualIndRNN, K, H, 2, **language_options(position))


def dense_language_model(position, growth=3, blocks=(2, 1)):
    """The first block reads the embedding; the last transition goes back to its size."""
    net, features, parts = Language(position), K, []
    for i, layers in enumerate(blocks):
        pairs = []
        for j in range(layers):
            pair = f"DenseBlocks.{i}.denselayers.{j}"
            net.make_linear(f"{pair}.fc1", features, 4 * growth)
            net.make_act(f"{pair}.IndRNNwithBN1", 4 * growth)
            net.make_linear(f"{pair}.fc2", 4 * growth, growth)
            net.make_act(f"{pair}.IndRNNwithBN2", growth)
            features += growth
            pairs.append(pair)
        size = K if i == len(blocks) - 1 else features // 2
        net.make_linear(f"TransBlocks.{i}.fc", features, size)
        net.make_act(f"TransBlocks.{i}.IndRNNwithBN1", size)
        features = size
        parts.append((pairs, f"TransBlocks.{i}"))

    def stack(x):
        for pairs, end in parts:
            for pair in pairs:
                y = net.act(f"{pair}.IndRNNwithBN1", net.linear(f"{pair}.fc1", x))
                y = net.act(f"{pair}.IndRNNwithBN2", net.linear(f"{pair}.fc2", y))
                x = torch.cat([x, y], 2)
            x = net.act(f"{end}.IndRNNwithBN1", net.linear(f"{end}.fc", x))
        return x

    run = net.model(stack, lambda x: x, f"TransBlocks.{len(blocks) - 1}.extra_bn")
    options = language_options(position) | {"first_features": 0, "last_features": K}
    return net, run, double(DenseIndRNN, K, growth, blocks, **options)


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize(
    "network", [plain_language_model, residual_language_model, dense_language_model]
)
def test_authors_language_models(network, position):
    net, run, stack = network(position)
    rest = load_authors(stack, net.state)
    parts, around = [stack], ("encoder.weight", "decoder.weight", "decoder.bias")
    if network is not dense_language_model:
        parts.append(double(IndRNN, H, K, **language_options(position)))
        rest = load_authors(parts[1], rest)
    tokens = torch.randint(TOKENS, (STEPS - 2, B))
    x = nn.functional.embedding(tokens, rest.pop("encoder.weight"))
    for part in parts:
        x, _ = part.eval()(x)
    extra = {key: value for key, value in rest.items() if key.startswith("extra_bn.")}
    assert bool(extra) == (position == "before")
    if extra:
        assert set(extra) == {f"extra_bn.{key}" for key in (*NORM, "num_batches_tracked")}
        norm = StepBatchNorm(K, STEPS, dtype=torch.float64).eval()
        norm.load_state_dict({key: extra[f"extra_bn.{key}"] for key in NORM})
        x = norm(x.transpose(0, 1), Sequences(B)).transpose(0, 1)
    x = nn.functional.linear(x, rest.pop("decoder.weight"), rest.pop("decoder.bias"))
    assert rest.keys() == extra.keys()
    torch.testing.assert_close(x, run(tokens))
    back = to_authors(stack)
    names = {key for key in net.state if not key.startswith((*around, "last_"))}
    assert back.keys() == {key for key in names if "extra_bn" not in key}
    for key, value in back.items():
        expected = 0 * net.state[key] if key.endswith("tracked") else net.state[key]
        assert torch.equal(value, expected), key


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("kind", [IndRNN, ResidualIndRNN, DenseIndRNN])
@pytest.mark.parametrize("norm", ["batch", "batch_per_step"])
def test_authors_norms_have_their_eps(kind, norm):
    """The state dict does not hold eps: another one would give other outputs."""
    module = kind(K, 4, norm=norm, norm_steps=9 if norm == "batch_per_step" else None)
    state = to_authors(module)
    for part in module.modules():
        if hasattr(part, "eps"):
            part.eps = 1e-3
    for use in (to_authors, lambda module: load_authors(module, state)):
        with pytest.raises(ValueError, match=r"norms must have eps=1e-05, but .* has eps=0\.001"):
            use(module)


# One layer of the TensorFlow cell, and of Haste, over (T, B, K).


def run_tensorflow(state, x, activation=torch.relu, least=0.0, most=math.inf):
    """With bounds of |u|; the sign stays."""
    u = state["recurrent_kernel"]
    u = torch.where(u.abs() < least, torch.copysign(torch.full_like(u, least), u), u)
    u = torch.where(u.abs() > most, torch.copysign(torch.full_like(u, most), u), u)
    h, rows = x.new_zeros(x.shape[1], len(u)), []
    for x_t in x:
        h = activation(x_t @ state["input_kernel"] + h * u + state["bias"])
        rows.append(h)
    return torch.stack(rows)


def run_haste(state, x, zoneout=0.0):
    h, rows = x.new_zeros(x.shape[1], len(state["bias"])), []
    for projected in x @ state["kernel"]:
        if "gamma" in state:
            mean, var = projected.mean(1, keepdim=True), projected.var(1, False, keepdim=True)
            projected = (projected - mean) / torch.sqrt(var + 1e-5) * state["gamma"][0]
        new = torch.tanh(projected + state["bias"] + h * state["recurrent_scale"])
        h = zoneout * h + (1 - zoneout) * new
        rows.append(h)
    return torch.stack(rows)


def kernels(names, layers):
    sizes = [K] + [H] * (layers - 1)
    shapes = [((size, H), (H,), (H,), (2, H))[: len(names)] for size in sizes]
    return [dict(zip(names, [numbers(*s) for s in shape], strict=True)) for shape in shapes]


TENSORFLOW = ("input_kernel", "recurrent_kernel", "bias")
HASTE = ("kernel", "recurrent_scale", "bias")


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
