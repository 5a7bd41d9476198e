"""What is timed side by side: the recurrence alone, and layers that a user would pick instead.

A candidate makes a module for a number of features, and calls it with x (B, T, features). What it
raises becomes its row.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bench.speed import cases
from bench.speed.cases import SCAN_BACKWARD, TRAINING
from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.functional import indrnn, indrnn_scan

SCAN, LAYER, LINEAR, COPY, RELU = "indrnn_scan", "IndRNN", "nn.Linear", "copy", "torch.relu"
RNN, GRU, LSTM, LOOP = "nn.RNN relu", "nn.GRU", "nn.LSTM", "PyTorch loop"
MIN_GRU = "minGRU-pytorch"
STEP, CELL, FUNCTION, PLAIN = "IndRNN.step", "IndRNNCell", "indrnn", "nn.Linear + relu"
OURS = SCAN, LAYER, STEP, CELL, FUNCTION
QUICK = *OURS, LINEAR, COPY, RELU  # take time in proportion to their tensors: never too long


class Candidate(NamedTuple):
    """call(make(features), x) is the output, or a tuple that begins with it."""

    make: Callable[[int], nn.Module]
    call: Callable[[Any, torch.Tensor], Any] = nn.Module.__call__


def candidates(what):
    """{name: Candidate}, ours first."""
    if what in cases.SCANS:
        return SCANS
    if what in cases.CALLS:
        return ONE_STEP
    return {name: Candidate(make) for name, make in (LAYERS | installed()).items()}


def bind(what, candidate, module, inputs):
    """The function to time, without arguments. What has no gradients runs without autograd, which
    the caller turns off."""
    if what == TRAINING or (what == SCAN_BACKWARD and candidate is not SCANS[COPY]):
        return Gradients(module, inputs, once=what == SCAN_BACKWARD)
    return partial(candidate.call, module, inputs.x)


def output_of(result):
    return result[0] if isinstance(result, tuple) else result


class Gradients:
    """Called, it returns a module's output, and the gradients of x and of all parameters. With
    `once`, the output is computed here, and a call is the backward alone."""

    def __init__(self, module, inputs, once=False):
        self.module, self.grad = module, inputs.grad
        self.leaves = [inputs.x.detach().requires_grad_(), *module.parameters()]
        self.output = output_of(module(self.leaves[0])) if once else None

    def __call__(self):
        h = self.output if self.output is not None else output_of(self.module(self.leaves[0]))
        options = {"retain_graph": self.output is not None, "materialize_grads": True}
        return h.detach(), torch.autograd.grad(h, self.leaves, self.grad, **options)


class Scan(nn.Module):
    """A function of what arrives at neurons (B, T, N) and of their recurrent weights (N,), which
    are called as those of `IndRNN`."""

    def __init__(self, function, features):
        super().__init__()
        self.function = function
        self.weight_hh_l0 = nn.Parameter(torch.rand(features))

    def forward(self, a):
        return self.function(a, self.weight_hh_l0)


def loop(a, u):
    """An IndRNN in PyTorch's own operators."""
    h, steps = torch.zeros_like(a[:, 0]), []
    for a_t in a.unbind(1):
        h = torch.relu(a_t + u * h)
        steps.append(h)
    return torch.stack(steps, 1)


# A copy of the input and relu of it read and write as much as the recurrence.
SCANS = {
    name: Candidate(partial(Scan, function))
    for name, function in {
        SCAN: lambda a, u: output_of(indrnn_scan(a, u)),
        RELU: lambda a, u: torch.relu(a),
        COPY: lambda a, u: a.clone(),
    }.items()
}
LAYERS = {
    LAYER: lambda N: IndRNN(N, N, batch_first=True),
    LINEAR: lambda N: nn.Linear(N, N),
    RNN: lambda N: nn.RNN(N, N, nonlinearity="relu", batch_first=True),
    GRU: lambda N: nn.GRU(N, N, batch_first=True),
    LSTM: lambda N: nn.LSTM(N, N, batch_first=True),
    LOOP: lambda N: nn.Sequential(nn.Linear(N, N), Scan(loop, N)),
}


def call_indrnn(rnn, x):
    return indrnn(x, rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.weight_hh_l0)


# One time step of one sequence is Python, dispatcher and launch, and little else.
ONE_STEP = {
    LAYER: Candidate(LAYERS[LAYER]),
    STEP: Candidate(LAYERS[LAYER], lambda rnn, x: rnn.step(x[0])),
    CELL: Candidate(lambda N: IndRNNCell(N, N), lambda cell, x: cell(x[0])),
    FUNCTION: Candidate(LAYERS[LAYER], call_indrnn),
    PLAIN: Candidate(LAYERS[LINEAR], lambda linear, x: torch.relu(linear(x))),
}


class Hgrn(nn.Module):
    """h_t = f_t * h_{t-1} + (1 - f_t) * i_t. Qin et al. 2023, arXiv 2311.04823; fla-core 0.6, not
    run by us yet.

    The HGRN layer's output gate, norm and output projection are left out. chunk_hgrn takes log f.
    """

    def __init__(self, features):
        from fla.ops.hgrn import chunk_hgrn

        super().__init__()
        self.recurrence = chunk_hgrn
        self.product, self.gate = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, x):
        logarithm = F.logsigmoid(self.gate(x))
        return self.recurrence(self.product(x) * (1 - logarithm.exp()), logarithm)[0]


def min_gru(features):
    """h_t = (1 - z_t) * h_{t-1} + z_t * g(W x_t). Feng et al. 2024, arXiv 2410.01201;
    minGRU-pytorch 0.2."""
    from minGRU_pytorch import minGRU

    return minGRU(features)


PACKAGES = {"fla-core": ("fla", Hgrn), MIN_GRU: ("minGRU_pytorch", min_gru)}


def installed():
    """The layers of other packages, as far as these are installed."""
    return {
        name: make for name, (module, make) in PACKAGES.items() if importlib.util.find_spec(module)
    }
