"""The recurrent networks that the tasks compare, all called in one way."""

from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.arguments import UserError
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN, init, recurrent_max_for

OURS = "indrnn", "residual", "dense"
# Where the recurrent weights of PyTorch's relu network start: at the identity, at a hundredth of it
# for short memory, and where PyTorch lets them start.
IRNN = {"irnn": 1.0, "irnn-small": 0.01, "irnn-uniform": None}
PYTORCH = *IRNN, "rnn", "gru", "lstm"
KINDS = *OURS, *PYTORCH, "mingru"
DENSE = (8, 6, 4)  # layers of the blocks of the dense stack, as in the papers


def make(kind, inputs, hidden, layers, *, dropout=0.0, bidirectional=False, **ours):
    """A module (x (B, T, inputs), state=None, lengths=None) -> (output (B, T, output_size), state).

    `ours` is for the kinds of OURS alone. `layers` are blocks of two where the kind is residual.
    """
    if kind in OURS:
        return make_ours(kind, inputs, hidden, layers, bidirectional, dropout=dropout, **ours)
    if kind == "mingru":
        if bidirectional:
            raise UserError("--model mingru has one direction")
        return MinGRU(inputs, hidden, layers, dropout)
    return Cells(kind, inputs, hidden, layers, dropout, bidirectional)


def make_ours(kind, inputs, hidden, layers, bidirectional, **options):
    options["batch_first"] = True
    if kind == "indrnn":
        if layers == 1:
            options["dropout"] = 0.0  # it acts between layers
        return IndRNN(inputs, hidden, layers, bidirectional=bidirectional, **options)

    def stack():
        if kind == "residual":
            return ResidualIndRNN(inputs, hidden, layers, **options)
        if hidden % 8:
            raise UserError(f"--hidden {hidden}: must be a multiple of 8 with dense")
        return DenseIndRNN(inputs, hidden // 8, DENSE, **options)

    return Bidirectional(stack) if bidirectional else stack()


def long_memory_last(kind, layers, steps, gamma):
    """`recurrent_init` for one answer after so many steps: the last recurrence forgets little."""
    high = recurrent_max_for(steps, gamma)
    if kind == "dense":
        count = 1 + 2 * sum(DENSE) + len(DENSE)  # one before, and one behind each block
    else:
        count = 2 * layers + 1 if kind == "residual" else layers
    starts = [partial(init.uniform_, high=high)] * (count - 1)
    return [*starts, partial(init.long_memory_, T=steps, gamma=gamma)]


class Cells(nn.Module):
    """PyTorch's own networks.

    lstm starts with open forget gates (bias 1). The kinds of IRNN are relu networks; those that
    start from the identity have small input weights: Le et al. 2015, arXiv 1504.00941.
    """

    def __init__(self, kind, inputs, hidden, layers, dropout, bidirectional):
        super().__init__()
        options = {"batch_first": True, "bidirectional": bidirectional}
        options["dropout"] = dropout if layers > 1 else 0.0
        make = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
        if kind in IRNN:
            options["nonlinearity"] = "relu"
        self.cells = make(inputs, hidden, layers, **options)
        self.output_size = hidden * (1 + bidirectional)
        scale = IRNN.get(kind)
        with torch.no_grad():
            for name, parameter in self.cells.named_parameters():
                if kind == "lstm" and name.startswith("bias"):
                    parameter[hidden : 2 * hidden] = 0.5  # there are two biases
                elif scale is not None and name.startswith("weight_hh"):
                    nn.init.eye_(parameter).mul_(scale)
                elif scale is not None and name.startswith("weight_ih"):
                    nn.init.normal_(parameter, std=0.001)
                elif scale is not None:
                    nn.init.zeros_(parameter)

    def forward(self, x, state=None, lengths=None):
        if lengths is None:
            return self.cells(x, state)
        options = {"batch_first": True}
        x = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False, **options)
        output, state = self.cells(x, state)
        return pad_packed_sequence(output, **options)[0], state


class MinGRU(nn.Module):
    """A product, then blocks x + dropout(minGRU(norm(x))), then a norm; minGRU-pytorch 0.2.

    Feng et al. 2024, arXiv 2410.01201. The state is (layers, B, hidden). What stands behind a
    sequence changes nothing before it, so that lengths need no care.
    """

    def __init__(self, inputs, hidden, layers, dropout):
        super().__init__()
        from minGRU_pytorch import minGRU  # here, because the other kinds do not need it

        self.input = nn.Linear(inputs, hidden)
        self.layers = nn.ModuleList(minGRU(hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers + 1))
        self.dropout, self.output_size = nn.Dropout(dropout), hidden

    def forward(self, x, state=None, lengths=None):
        x, ends = self.input(x), []
        states = [None] * len(self.layers) if state is None else state.unsqueeze(2)
        for layer, norm, start in zip(self.layers, self.norms, states, strict=False):
            y, end = layer(norm(x), start, return_next_prev_hidden=True)
            x = x + self.dropout(y)
            ends.append(end[:, 0])
        return self.norms[-1](x), torch.stack(ends)


def hidden_for(parameters, make_model):
    """The multiple of 8 for hidden with which `make_model(hidden)` has the count of parameters that
    is nearest to the one asked for."""

    def count(hidden):
        return sum(p.numel() for p in make_model(hidden).parameters())

    low, high = 8, 16
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min(low, high, key=lambda hidden: abs(count(hidden) - parameters))
