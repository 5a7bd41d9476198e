"""The formulas of other implementations, over state dicts with their names."""

import math

import torch

from fastindrnn import IndRNN

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
