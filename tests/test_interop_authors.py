"""The authors' networks, against loops with their formulas."""

import pytest
import torch
from interop_cases import Authors, B, H, K, T, double, numbers, plain_network

from fastindrnn import DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN
from fastindrnn.interop import load_authors, to_authors


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
    net, features, parts = Authors(position), 6 * growth, []

    def unit(fc, recurrent, inputs, outputs):
        net.make_linear(fc, inputs, outputs)
        net.make_act(recurrent, outputs)
        return lambda x: net.act(recurrent, net.linear(fc, x))

    def concatenated(layer):
        return lambda x: torch.cat([x, layer(x)], 2)

    parts.append(unit("features.fc0", "features.IndRNNwithBN0", K, features))
    for i, layers in enumerate(blocks):
        for j in range(layers):
            name = f"features.denseblock{i + 1}.denselayer{j + 1}"
            one = unit(f"{name}.fc1", f"{name}.IndRNNwithBN1", features, 4 * growth)
            two = unit(f"{name}.fc2", f"{name}.IndRNNwithBN2", 4 * growth, growth)
            parts.append(concatenated(lambda x, one=one, two=two: two(one(x))))
            features += growth
        if i == len(blocks) - 1 and not last:
            break
        name = f"features.transition{i + 1}" if i < len(blocks) - 1 else "features.lastlayer"
        parts.append(unit(f"{name}.fc", f"{name}.IndRNNwithBN", features, features // 2))
        features //= 2

    def run(x):
        for part in parts:
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
