"""What is timed side by side: the recurrence alone, and layers that a user would pick instead."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bench.speed import checks
from bench.speed.inputs import Inputs
from bench.speed.memory import TrainingStep
from fastindrnn import IndRNN
from fastindrnn.functional import indrnn_scan

SCAN, LAYER, LINEAR, COPY, RELU = "indrnn_scan", "IndRNN", "nn.Linear", "copy", "torch.relu"
RNN, GRU, LSTM, LOOP = "nn.RNN relu", "nn.GRU", "nn.LSTM", "PyTorch loop"
COMPILED, SERIAL = "compiled loop", "serial kernel"
OURS = SCAN, LAYER
COMPILED_STEPS = 64  # torch.compile unrolls the loop: 256 steps took 50 s to compile (Intel Xeon)


@dataclass(frozen=True)
class Candidate:
    """`bind(inputs)` readies it and returns the function to time.

    keeps: about how many (B, T, N) tensors a layer of it holds in a training step, for the guess
    whether there is memory enough. peer: not us, nor what we are measured by: fewer samples.
    same: its first result is h of the recurrence, and is compared with ours.
    """

    bind: Callable[[Inputs], Callable[[], object]]
    keeps: float = 1
    peer: bool = True
    same: bool = False
    most_steps: int | None = None


KEEPS = {LAYER: 1, LINEAR: 1, RNN: 4, GRU: 10, LSTM: 12, LOOP: 5, COMPILED: 4, SERIAL: 2}
KEEPS_OF_EXTRAS = 16
SAME = LOOP, COMPILED, SERIAL


def loop(a, u):
    """h_t = relu(a_t + u * h_{t-1}), one time step after the other."""
    h, rows = torch.zeros_like(a[:, 0]), []
    for a_t in a.unbind(1):
        h = torch.relu(a_t + u * h)
        rows.append(h)
    return torch.stack(rows, 1)


def compiled_loop():
    """Compiled anew: what was compiled for other sizes would count against torch's limit."""
    torch.compiler.reset()
    return torch.compile(loop, fullgraph=True, dynamic=False)


class SerialScan(torch.autograd.Function):
    """The serial kernel, for a GPU."""

    @staticmethod
    def forward(ctx, a, u):
        from bench.speed import serial

        h = torch.empty_like(a)
        serial.serial_scan_forward(a, u, h)
        ctx.save_for_backward(h, u)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        from bench.speed import serial

        return serial.serial_backward(grad_h.contiguous(), *ctx.saved_tensors)


class SerialLayer(torch.autograd.Function):
    """The product, then the serial kernel in place; saves x and h, as ours does."""

    @staticmethod
    def forward(ctx, x, weight, bias, u):
        from bench.speed import serial

        h = serial.serial_layer_forward(x, weight, bias, u)
        ctx.save_for_backward(x, weight, h, u)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        from bench.speed import serial

        x, weight, h, u = ctx.saved_tensors
        grad_a, grad_u = serial.serial_backward(grad_h.contiguous(), h, u)
        rows = grad_a.flatten(0, 1)
        return grad_a @ weight, rows.t() @ x.flatten(0, 1), rows.sum(0), grad_u


class ByLayer(nn.Module):
    """The layers of an `IndRNN`, with its parameters, computed by function(x, weight, bias, u)."""

    def __init__(self, rnn, function):
        super().__init__()
        self.rnn, self.function = rnn, function

    def forward(self, x):
        for parameters in checks.parameters_of(self.rnn):
            x = self.function(x, *parameters)
        return x


class Chain(nn.Module):
    """One layer after the other, each of which returns its output, or a tuple that begins with
    it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = output_of(layer(x))
        return x


def output_of(result):
    return result[0] if isinstance(result, tuple) else result


def make_layers(N, layers, dtype, device, extras):
    """{name: how to make the stack}. "IndRNN" is made already, and the others of the same
    recurrence have its parameters. extras: {name: how to make a layer of N features}."""
    torch.manual_seed(0)
    options = {"device": device, "dtype": dtype}
    rnn = IndRNN(N, N, layers, batch_first=True, **options)

    def recurrent(kind, **more):
        return lambda: kind(N, N, layers, batch_first=True, **options, **more)

    def by_layer(make_scan):
        def make():
            scan = make_scan()
            return ByLayer(rnn, lambda x, weight, bias, u: scan(F.linear(x, weight, bias), u))

        return make

    made = {
        LAYER: lambda: rnn,
        LINEAR: lambda: Chain(nn.Linear(N, N, **options) for _ in range(layers)),
        RNN: recurrent(nn.RNN, nonlinearity="relu"),
        GRU: recurrent(nn.GRU),
        LSTM: recurrent(nn.LSTM),
        LOOP: by_layer(lambda: loop),
        COMPILED: by_layer(compiled_loop),
    }
    if layers > 1:
        del made[COMPILED]  # compiled a layer at a time, it is as many times slower as layers
    if device.type == "cuda":
        made[SERIAL] = lambda: ByLayer(rnn, SerialLayer.apply)
    for name, extra in extras.items():
        made[name] = chain_of(extra, N, layers)
    return made


def chain_of(make, N, layers):
    return lambda: Chain(make(N) for _ in range(layers))


def layer_candidates(made, training):
    """{name: candidate} for a forward, or a training step: output, and the gradients of x and all
    parameters."""
    return {
        name: Candidate(
            bind_layers(make, training),
            keeps=KEEPS.get(name, KEEPS_OF_EXTRAS),
            peer=name not in (LAYER, LINEAR),
            same=name in SAME and not training,
            most_steps=COMPILED_STEPS if name == COMPILED else None,
        )
        for name, make in made.items()
    }


def bind_layers(make, training):
    def bind(inputs):
        module = make()
        if not training:
            return torch.no_grad()(lambda: output_of(module(inputs.x)))
        x = inputs.x.detach().requires_grad_()
        return TrainingStep(lambda x: output_of(module(x)), x, module.parameters(), inputs.grad)

    return bind


def copy_candidate():
    """Reads x and writes as much; memory for it is taken, as every candidate has to."""
    return Candidate(lambda inputs: inputs.x.clone, peer=False)


def scan_candidates(backward, device):
    """The recurrence alone, beside a copy of its input and relu of it."""
    functions = {SCAN: lambda a, u: indrnn_scan(a, u)[0], LOOP: loop}
    if device.type == "cuda":
        functions[SERIAL] = SerialScan.apply
    made = {
        name: Candidate(
            (bind_backward if backward else bind_forward)(function),
            keeps=KEEPS.get(name, 1),
            peer=name != SCAN,
            same=name != SCAN and not backward,
        )
        for name, function in functions.items()
    }
    relu = Candidate(lambda inputs: lambda: torch.relu(inputs.x), peer=False)
    return made | {COPY: copy_candidate(), RELU: relu}


def bind_forward(function):
    return lambda inputs: torch.no_grad()(lambda: function(inputs.x, inputs.u))


def bind_backward(function):
    def bind(inputs):
        leaves = [part.detach().requires_grad_() for part in (inputs.x, inputs.u)]
        h = function(*leaves)
        return lambda: torch.autograd.grad(h, leaves, inputs.grad, retain_graph=True)

    return bind
