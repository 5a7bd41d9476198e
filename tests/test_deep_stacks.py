"""Every stack against loops over sequences, steps and layers, written from the papers."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN, init, recurrent_max_for


def recurrence(rows, u, reverse):
    state, out = torch.zeros_like(u), [None] * len(rows)
    for t in reversed(range(len(rows))) if reverse else range(len(rows)):
        state = out[t] = torch.relu(rows[t] + u * state)
    return torch.stack(out) if out else rows.clone(), state


def normalize(norm, pieces, training):
    """pieces: one (steps, features) for each sequence."""
    if norm is None:
        return pieces
    if isinstance(norm, nn.LayerNorm):
        return [
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + norm.eps).sqrt()
            * norm.weight + norm.bias
            for x in pieces
        ]  # fmt: skip

    def affine(x, mean, var):
        return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias

    if isinstance(norm, nn.BatchNorm1d):
        rows = torch.cat(pieces)
        mean, var = rows.mean(0), rows.var(0, False)
        if not training:
            mean, var = norm.running_mean, norm.running_var
        return [affine(x, mean, var) for x in pieces]
    out = [torch.empty_like(x) for x in pieces]
    for t in range(max(len(x) for x in pieces)):
        rows = torch.stack([x[t] for x in pieces if t < len(x)])
        mean, var = rows.mean(0), rows.var(0, False)
        if not training:
            mean, var = norm.running_mean[t], norm.running_var[t]
        for x, y in zip(pieces, out, strict=True):
            if t < len(x):
                y[t] = affine(x[t], mean, var)
    return out


class Naive:
    """A stack's definition over a list of sequences. Dropout draws as the stack does, in order."""

    def __init__(self, module, pieces):
        self.module, self.pieces, self.ends = module, pieces, []

    def drop(self, pieces, p):
        if not self.module.training or p == 0:
            return pieces
        mask = nn.functional.dropout(torch.ones(len(pieces), pieces[0].shape[1]).double(), p)
        return [x * m for x, m in zip(pieces, mask, strict=True)]

    def unit(self, pieces, weight, bias, u, norm, position, dropout, reverse):
        training = self.module.training
        if weight is not None:
            pieces = [x @ weight.T + (0 if bias is None else bias) for x in pieces]
        if position == "before":
            pieces = normalize(norm, pieces, training)
        pieces, ends = zip(*[recurrence(x, u, reverse) for x in pieces], strict=True)
        self.ends.append(torch.stack(ends))
        if position == "after":
            pieces = normalize(norm, pieces, training)
        return self.drop(pieces, dropout)

    def of(self, unit, pieces, reverse):
        parts = unit.weight_ih, unit.bias_ih, unit.weight_hh, unit.norm, unit.norm_position
        return self.unit(pieces, *parts, unit.dropout, reverse)

    def run(self, module, pieces, reverse=False):
        if isinstance(module, IndRNN):
            for layer in range(module.num_layers):
                sides = []
                for side in ["", "_reverse"][: 2 if module.bidirectional else 1]:
                    end = f"_l{layer}{side}"
                    names = [f"weight_ih{end}", f"bias_ih{end}", f"weight_hh{end}", f"norm{end}"]
                    parts = [getattr(module, name, None) for name in names]
                    backwards = reverse != bool(side)
                    sides.append(self.unit(pieces, *parts, module.norm_position, 0, backwards))
                pieces = [torch.cat(x, -1) for x in zip(*sides, strict=True)]
                if layer < module.num_layers - 1:
                    pieces = self.drop(pieces, module.dropout)
            return pieces
        if isinstance(module, ResidualIndRNN):

            def linear(weight, pieces):
                return [nn.functional.linear(x, weight.weight, weight.bias) for x in pieces]

            stream = linear(module.input, pieces)
            for block in module.blocks:
                inner = self.of(block["first"], stream, reverse)
                inner = linear(block["output"], self.of(block["second"], inner, reverse))
                stream = [x + y for x, y in zip(stream, inner, strict=True)]
            return self.of(module.last, stream, reverse)
        if isinstance(module, DenseIndRNN):
            if module.first is not None:
                pieces = self.of(module.first, pieces, reverse)
            for block in module.blocks:
                for pair in block["dense"]:
                    new = self.of(pair["bottleneck"], pieces, reverse)
                    new = self.of(pair["layer"], new, reverse)
                    pieces = [torch.cat(x, -1) for x in zip(pieces, new, strict=True)]
                if "transition" in block:
                    pieces = self.of(block["transition"], pieces, reverse)
            return pieces
        forwards = self.run(module.forwards, pieces, reverse)
        backwards = self.run(module.backwards, pieces, not reverse)
        return [torch.cat(x, -1) for x in zip(forwards, backwards, strict=True)]


def make(kind, directions, norm, dropout, bias):
    position = "before" if norm and norm.startswith("before ") else "after"
    norm = norm and norm.removeprefix("before ")
    options = {
        "norm": norm,
        "norm_position": position,
        "norm_steps": 9 if norm == "batch_per_step" else None,
        "dropout": dropout,
        "bias": bias,
    }
    if kind == "layers":
        return IndRNN(4, 5, 2, bidirectional=directions == 2, **options)

    def factory():
        if kind == "residual":
            return ResidualIndRNN(4, 5, 1, **options)
        if kind == "dense, other ends":
            options.update(first_features=0, last_features=0)
        return DenseIndRNN(4, 2, (2, 1), **options)

    return factory() if directions == 1 else Bidirectional(factory)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["layers", "residual", "dense", "dense, other ends"]),
    directions=st.sampled_from([1, 2]),
    form=st.sampled_from(["padded", "lengths", "packed"]),
    norm=st.sampled_from(
        [None, "batch", "before batch", "batch_per_step", "before batch_per_step", "layer"]
    ),
    dropout=st.sampled_from([0.0, 0.3]),
    bias=st.booleans(),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_against_loops(kind, directions, form, norm, dropout, bias, training, dtype, lengths, seed):
    torch.manual_seed(seed)
    module = make(kind, directions, norm, dropout, bias).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.uniform_(-1, 1) if "weight_hh" in name else parameter.add_(
                torch.randn_like(parameter) * 0.1
            )
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    module.train(training)
    # Dividing by the deviation of a few rows or features amplifies rounding without bound.
    dtype = torch.float64 if norm == "layer" or (training and norm) else dtype
    if form == "padded":
        lengths = [lengths[0]] * len(lengths)
    pieces = [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
    if form == "packed":  # the masks of dropout are drawn in the order of the packed sequences
        order = pack_sequence(pieces, enforce_sorted=False).sorted_indices
        pieces, lengths = [pieces[i] for i in order], [lengths[i] for i in order]
    naive = Naive(module, pieces)
    torch.manual_seed(seed)
    expected = naive.run(module, pieces)
    ends = torch.cat(naive.ends, -1)

    module, pieces = module.to(dtype), [x.to(dtype) for x in pieces]
    torch.manual_seed(seed)
    if form == "packed":
        packed, h_n = module(pack_sequence(pieces))
        output = pad_packed_sequence(packed)[0]
    elif form == "lengths":
        padded = pad_sequence(pieces, padding_value=torch.nan)
        output, h_n = module(padded, lengths=torch.tensor(lengths))
    else:
        output, h_n = module(torch.stack(pieces, 1))
    actual = torch.cat([output[:n, b] for b, n in enumerate(lengths)])
    if h_n.dim() == 3:
        h_n = h_n.transpose(0, 1).flatten(1)
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-7, "atol": 1e-7} if exact else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(actual.double(), torch.cat(expected), **tolerance)
    torch.testing.assert_close(h_n.double(), ends, **tolerance)
    assert actual.dtype == h_n.dtype == dtype


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: IndRNN(4, 5, 2, bidirectional=True),
        lambda: IndRNN(4, 5, 2, bidirectional=True, norm="layer"),
        lambda: ResidualIndRNN(4, 5, 1, norm="layer"),
    ],
    ids=["layers", "layers with a norm", "residual"],
)
def test_a_stack_backwards_is_the_stack_on_the_reversed_input(make, nested):
    """Whatever directions it has within it: outputs, states and gradients."""
    module = Bidirectional((lambda: Bidirectional(make)) if nested else make).double()
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    forwards, backwards = module.forwards(x), module.backwards(x.flip(0))
    output = torch.cat([forwards[0], backwards[0].flip(0)], -1)
    results = []
    for y, h_n in (module(x), (output, torch.cat([forwards[1], backwards[1]]))):
        loss = y.sin().sum() + h_n.cos().sum()
        grads = torch.autograd.grad(loss, list(module.parameters()))
        results.append((y, h_n, *grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", ["lengths", "packed"])
def test_statistics_of_steps_that_no_sequence_has(form):
    """They stay as they were; those of the others move towards what the step showed."""
    module = IndRNN(4, 5, norm="batch_per_step", norm_steps=9)
    norm, pieces = module.norm_l0, [torch.randn(n, 4) for n in (5, 3)]
    with torch.no_grad():
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(7.0)
    if form == "packed":
        module(pack_sequence(pieces))
    else:
        padded = torch.zeros(9, 2, 4)
        for b, piece in enumerate(pieces):
            padded[: len(piece), b] = piece
        module(padded, lengths=torch.tensor([5, 3]))
    for running in (norm.running_mean, norm.running_var):
        assert (running[5:] == 7).all()
        assert (running[:5] != 7).all()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (lambda: IndRNN(1, 128, 6, norm="batch"), 86_410),
        (lambda: IndRNN(1, 128, 12, norm="batch"), 187_786),
        (lambda: ResidualIndRNN(1, 128, 5), 170_890),
        (lambda: DenseIndRNN(1, 16, (8, 6, 4)), 256_514),
    ],
)
def test_parameter_counts_are_the_published_ones(make, published):
    """With batch norm (scale and shift) after each recurrence, a bias in every weight, and a linear
    head for 10 classes on the last step's output."""
    module = make()
    features = module(torch.zeros(2, 2, 1))[0].shape[-1]
    assert parameters(module) + parameters(nn.Linear(features, 10)) == published


def test_initial_values_by_recurrence():
    """One initialiser for each recurrence, in the signal's order; the last with long memory."""
    bound = recurrent_max_for(50)
    short, long = partial(init.uniform_, low=0.0, high=bound), partial(init.long_memory_, T=50)
    residual = ResidualIndRNN(3, 64, 2, recurrent_max=bound, recurrent_init=[short] * 4 + [long])
    assert residual.last.weight_hh.min() >= 1 / bound
    assert residual.blocks[0]["first"].weight_hh.min() < 0.5
    count = 1 + 5 + 3
    dense = DenseIndRNN(3, 8, (2, 1), recurrent_init=[short] * (count - 1) + [long])
    assert dense.blocks[-1]["transition"].weight_hh.min() >= 1 / bound
    assert dense.first.weight_hh.min() < 0.5
    bare = DenseIndRNN(3, 8, (2, 1), first_features=0, last_features=0, recurrent_init=[short] * 7)
    assert bare.state_shape() == (3 * 4 * 8 + 3 * 8 + (3 + 2 * 8) // 2,)


def test_sizes_of_the_ends_of_a_dense_stack():
    x = torch.randn(2, 1, 3)
    # The first block reads 3 or 5 features and adds 2 * 4; half of them go on, and 4 are added.
    ends = {
        (0, 0): 9,
        (5, 0): 10,
        (0, 7): 7,
        (5, None): 5,
        (None, None): (((24 + 8) // 2) + 4) // 2,
    }
    for (first, last), size in ends.items():
        dense = DenseIndRNN(3, 4, (2, 1), first_features=first, last_features=last)
        assert dense.output_size == dense(x)[0].shape[-1] == size
        assert (dense.first is None) == (first == 0)
        assert ("transition" in dense.blocks[-1]) == (last != 0)
