"""Which way a call takes, and that all ways compute the same: outputs, states and gradients."""

import contextlib
from dataclasses import dataclass, replace
from typing import get_args
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tolerance import assert_close_to_reference
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastindrnn
from fastindrnn import IndRNN, IndRNNCell, ResidualIndRNN, cell, functional, layers, units
from fastindrnn.functional import indrnn, indrnn_scan
from fastindrnn.plan import Way, plan

K, H = 3, 4


@dataclass(frozen=True)
class Case:
    kind: str = "layers"  # "layers", "residual", "cell", "function" or "scan"
    T: int = 5
    num_layers: int = 1
    direction: str = "forward"  # of layers "forward" or "both"
    form: str = "padded"  # "padded", "lengths", "resets" or "packed"
    has_state: bool = False
    grad: bool = True
    training: bool = True
    dropout: float = 0.0
    zoneout: float = 0.0
    norm: str | None = None  # None, "before" or "after": a layer norm
    nonlinearity: str = "relu"
    grad_clip: float | None = None
    grad_clip_mode: str = "per_step"
    backend: str | None = None
    dtype: torch.dtype = torch.float64
    seed: int = 0


def possible(case):
    """The nearest case that the package takes."""
    if case.kind == "cell":
        case = replace(case, T=1, form="padded", direction="forward")
    if case.kind in ("layers", "residual") and case.direction == "reverse":
        case = replace(case, direction="both")
    if case.kind == "residual":
        case = replace(case, direction="forward")
    if case.zoneout and case.form in ("resets", "packed"):
        case = replace(case, zoneout=0.0)
    if case.zoneout and not case.training:
        case = replace(case, grad_clip=None)
    if case.norm is not None:  # it divides by the deviation of a few numbers
        case = replace(case, dtype=torch.float64)
    return case


CASES = st.builds(
    Case,
    kind=st.sampled_from(["layers", "layers", "residual", "cell", "function", "scan"]),
    T=st.sampled_from([1, 2, 7]),
    num_layers=st.integers(1, 3),
    direction=st.sampled_from(["forward", "reverse", "both"]),
    form=st.sampled_from(["padded", "padded", "lengths", "resets", "packed"]),
    has_state=st.booleans(),
    grad=st.booleans(),
    training=st.booleans(),
    dropout=st.sampled_from([0.0, 0.0, 0.5]),
    zoneout=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    norm=st.sampled_from([None, None, "before", "after"]),
    nonlinearity=st.sampled_from(["relu", "relu", "hardtanh", "tanh", "identity"]),
    grad_clip=st.sampled_from([None, 0.3]),
    grad_clip_mode=st.sampled_from(["per_step", "result"]),
    backend=st.sampled_from([None, None, "cpu", "reference"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
).map(possible)


def make(case):
    """A module, or a function and its parameters, in float64."""
    options = {
        "nonlinearity": case.nonlinearity,
        "grad_clip": case.grad_clip,
        "grad_clip_mode": case.grad_clip_mode,
    }
    if case.kind == "cell":
        return IndRNNCell(K, H, **options).double()
    if case.kind in ("function", "scan"):
        shapes = [(H,)] if case.kind == "scan" else [(H, K), (H,), (H,)]
        values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]

        class Function(nn.Module):
            def __init__(self):
                super().__init__()
                self.values = nn.ParameterList(values)

            def forward(self, x, hx=None, **extents):
                function = indrnn_scan if case.kind == "scan" else indrnn
                more = options | extents | {"direction": case.direction}
                return function(x, *self.values, h0=hx, **more)

        return Function()
    options |= {
        "batch_first": True,
        "zoneout": case.zoneout,
        "dropout": case.dropout,
        "norm": case.norm and "layer",
        "norm_position": case.norm or "after",
    }
    if case.kind == "residual":
        return ResidualIndRNN(K, H, 1, **options).double()
    if case.num_layers == 1:
        options["dropout"] = 0.0  # or a warning that it does nothing
    return IndRNN(K, H, case.num_layers, bidirectional=case.direction == "both", **options).double()


def arguments(case, module):
    """x, hx and what says where the sequences are, in float64, for three sequences."""
    features = H if case.kind == "scan" else K
    x, extents = torch.randn(3, case.T, features, dtype=torch.float64), {}
    lengths = torch.randint(1, case.T + 1, (3,))
    if case.kind == "cell":
        x, shape = x[:, 0], (3, H)
    elif case.kind in ("function", "scan"):
        shape = 3, H
    else:
        *before, units = module.state_shape()
        shape = *before, 3, units
    if case.form == "lengths":
        extents["lengths"] = lengths
    elif case.form == "resets":
        extents["resets"] = torch.rand(3, case.T) < 0.3
    elif case.form == "packed":
        pieces = [x[b, :n] for b, n in enumerate(lengths.tolist())]
        if case.kind in ("function", "scan"):
            x = torch.cat(pieces)
            extents["cu_seqlens"] = nn.functional.pad(lengths.cumsum(0), (1, 0))
        else:
            x = pack_sequence(pieces, enforce_sorted=False)
    hx = torch.randn(shape, dtype=torch.float64) if case.has_state else None
    return x, hx, extents


def results(case, backend, dtype):
    """Outputs, last states, and where there are gradients those of everything."""
    torch.manual_seed(case.seed)
    module = make(case)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "weight_hh" in name:
                parameter.uniform_(-1, 1)
    x, hx, extents = arguments(case, module)
    module = module.to(dtype).train(case.training)
    inner = x.data if isinstance(x, PackedSequence) else x
    inner = inner.to(dtype).requires_grad_(case.grad)
    x = x._replace(data=inner) if isinstance(x, PackedSequence) else inner
    hx = None if hx is None else hx.to(dtype).requires_grad_(case.grad)
    torch.manual_seed(case.seed + 1)
    with fastindrnn.backend(backend), torch.set_grad_enabled(case.grad):
        found = module(x, hx, **extents)
        found = found if isinstance(found, tuple) else (found,)
        found = [y.data if isinstance(y, PackedSequence) else y for y in found]
        if case.grad and dtype != torch.bfloat16:  # where a rounded state falls past a kink
            weights = [torch.randn(y.shape, dtype=torch.float64).to(dtype) for y in found]
            loss = sum((y * w).sum() for y, w in zip(found, weights, strict=True))
            wanted = [y for y in (inner, hx, *module.parameters()) if y is not None]
            found += torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [y.detach() for y in found]


@contextlib.contextmanager
def plans():
    """The plans that are made inside."""
    made = []

    def noted(*arguments, **options):
        made.append(plan(*arguments, **options))
        return made[-1]

    with contextlib.ExitStack() as patches:
        for module in (functional, units, layers, cell):
            patches.enter_context(mock.patch.object(module, "plan", noted))
        yield made


def check(case):
    """Raises an AssertionError unless the case agrees with the reference. Returns its plans."""
    with plans() as made:
        actual = results(case, case.backend, case.dtype)
    expected = results(case, "reference", torch.float64)
    loop = results(case, "reference", case.dtype)
    for i, (y, exact, plain) in enumerate(zip(actual, expected, loop, strict=False)):
        assert y.dtype == case.dtype
        assert_close_to_reference(y, exact, plain, what=f"result {i} of {made[0]}")
    return made


# A case of each way, which the calls of a layer take first.
WAYS = {
    "step": Case(T=1, num_layers=2, has_state=True),
    "stack": Case(num_layers=3, grad_clip=0.3),
    "both directions": Case(num_layers=2, direction="both", form="lengths"),
    "layer": Case(num_layers=2, form="packed", grad=False),
    "projection then scan": Case(grad_clip=0.3, grad_clip_mode="result", has_state=True),
    "scan": Case("residual", form="resets", has_state=True),
    "reference": Case(num_layers=2, backend="reference"),
}


def test_each_way_is_known():
    assert set(WAYS) == set(get_args(Way))


@pytest.mark.parametrize(("way", "case"), WAYS.items())
def test_each_way_is_taken(way, case):
    made = check(case)
    assert made[0].way == way
    assert str(made[0]) == f"{way}: {made[0].why}"


@settings(max_examples=100)
@given(case=CASES)
@example(case=Case("cell", T=1, has_state=True))
@example(case=Case("cell", T=1, has_state=True, grad_clip=0.3))
@example(case=Case("function", direction="both", form="resets", has_state=True))
@example(case=Case("scan", direction="both", form="packed", has_state=True))
@example(case=Case(num_layers=2, direction="both", form="resets", has_state=True))
@example(case=Case(num_layers=2, dropout=0.5, dtype=torch.float32))
@example(case=Case(num_layers=2, zoneout=0.5, direction="both"))
@example(case=Case(num_layers=2, norm="after", direction="both", form="lengths"))
@example(case=Case(T=1, num_layers=2, dtype=torch.bfloat16))
def test_all_ways_agree(case):
    check(case)


def test_what_a_layer_says_of_its_calls():
    rnn, x = IndRNN(K, H, 2), torch.randn(5, 2, K)
    assert str(rnn.plan(x)) == "stack: training, and nothing stands between the layers"
    with torch.no_grad():
        assert rnn.plan(x).way == "layer"
        assert rnn.plan(x[:1]).way == rnn.plan(x[:1], torch.zeros(2, 2, H)).way == "step"
        assert rnn.plan(x[:1], lengths=torch.ones(2, dtype=torch.long)).way == "layer"
        assert rnn.plan(pack_sequence([x[:, 0]])).way == "layer"
        assert IndRNN(K, H, device="meta")(x[:1].to("meta"))[0].shape == (1, 2, H)
    with fastindrnn.backend("reference"):
        assert rnn.plan(x).way == "reference"
    with torch.autocast("cpu"):
        assert rnn.plan(x[:1]).way != "step"
    with pytest.raises(ValueError, match="input must be"):
        rnn.plan(x[0, 0])


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize(
    ("backend", "values"),
    [
        ("reference", [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.0, -1.0]),
        ("cpu", [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-39, -1e-39, 1.2e-38, 1.0, -1.0]),
    ],
)
def test_a_step_at_the_borders(backend, values, has_state):
    """Values and gradients where relu has its kink, at NaN and at infinities; and, as the kernels,
    0 for numbers below the normal ones."""
    found, N = [], len(values)
    for name in (None, backend):
        leaves = [torch.tensor(values)[None, None], torch.full((N,), 0.5)]
        leaves += [torch.zeros(1, N)] if has_state else []
        leaves = [x.requires_grad_() for x in leaves]
        with fastindrnn.backend(name), plans() as made:
            h, h_n = indrnn_scan(*leaves)
        assert (made[0].way == "step") == (name is None)
        grads = torch.autograd.grad(2 * h.sum() + 3 * h_n.sum(), leaves, materialize_grads=True)
        found.append((h.detach(), h_n.detach(), *grads))
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
