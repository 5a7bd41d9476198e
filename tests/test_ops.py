"""Operators: first and second derivatives, opcheck, compile, autocast, backends."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Case, cases, inputs, public_options
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastindrnn
from fastindrnn.functional import indrnn, indrnn_scan
from fastindrnn.kernels import cpu, reference
from fastindrnn.ops import backends


def leaves(case):
    """Inputs without NaN, as leaves that require gradients."""
    (a, u, h0, options), _ = inputs(case)
    a = torch.where(a.isnan(), 0, a).requires_grad_()
    return a, u.requires_grad_(), None if h0 is None else h0.requires_grad_(), options


@settings(max_examples=50, deadline=None)
@given(
    cases(T=5, N=3, dtype=torch.float64, time_first=False), st.sampled_from(["per_step", "result"])
)
def test_first_and_second_derivatives(case, mode):
    """By finite differences without a clip; with one, against the reference's autograd."""
    *arguments, options = leaves(case)
    wanted = [x for x in arguments if x is not None]
    if case.grad_clip is None and arguments[0].numel():

        def call(*x):
            return indrnn_scan(x[0], x[1], *x[2:], **public_options(options))

        assert torch.autograd.gradcheck(call, wanted)
        assert torch.autograd.gradgradcheck(call, wanted)
    results = []
    for function, names in ((indrnn_scan, public_options(options)), (reference.scan, options)):
        clip = {"grad_clip": case.grad_clip, "grad_clip_mode": mode}
        h, h_n = function(*arguments, **names, **clip)
        loss = h.sin().sum() + h_n.cos().sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        norm = sum(x.square().sum() for x in first) + 0 * loss
        second = torch.autograd.grad(norm, wanted, materialize_grads=True)
        results.append((h, h_n, *first, *second))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("clip", [{}, {"grad_clip": 0.5}, {"grad_clip_mode": "result"}])
def test_second_derivatives_many_at_once(clip, nonlinearity, form):
    """All rows of the Hessian in one backward, through the vmap of torch.autograd, which knows
    fewer operators than torch.vmap; of the scan and of a layer in both directions."""
    case = Case(2, 3, 2, torch.float64, nonlinearity, form=form, has_resets=True)
    *arguments, options = leaves(case)
    normal = partial(torch.randn, dtype=torch.float64)
    if form == "lengths":  # those that the case draws are 0, and its input padding
        options["lengths"] = torch.tensor([3, 1])
        arguments[0] = normal(2, 3, 2).requires_grad_()
    a, u, h0 = arguments
    del options["reverse"]
    clip = {"grad_clip": 0.5} | clip if clip else {}

    def scan(a, u, h0):
        return sum(y.sin().sum() for y in indrnn_scan(a, u, h0, **options, **clip))

    def layer(x, weight, bias, u, h0):
        y = indrnn(x, weight, bias, u, h0, direction="both", **options, **clip)
        return y[0].sin().sum() + y[1].sin().sum()

    hessian = torch.autograd.functional.hessian
    of_a_layer = a, normal(4, 2), normal(4), torch.cat([u, -u]), normal(2, 4)

    def scan_both(a, u, h0):
        pair = (torch.cat((x, 0.5 - x), -1) for x in (a, u, h0))
        return sum(y.sin().sum() for y in indrnn_scan(*pair, direction="both", **options, **clip))

    for function, values in ((scan, (a, u, h0)), (scan_both, (a, u, h0)), (layer, of_a_layer)):
        values = tuple(x.detach() for x in values)
        expected = hessian(function, values)
        torch.testing.assert_close(hessian(function, values, vectorize=True), expected)
    if not clip:
        assert torch.autograd.gradcheck(scan, arguments, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(scan, arguments, check_batched_grad=True)


@pytest.mark.parametrize("mode", ["per_step", "result"])
def test_clip_modes(mode):
    a, u, h0, options = leaves(Case(3, 20, 5, dtype=torch.float64))
    grads = []
    for function, names in ((indrnn_scan, public_options(options)), (reference.scan, options)):
        h, _ = function(a, u, h0, **names, grad_clip=0.3, grad_clip_mode=mode)
        grads.append(torch.autograd.grad(h.square().sum(), (a, u, h0)))
    torch.testing.assert_close(*grads)
    assert grads[0][0].abs().max() == 0.3


def test_lengths_out_of_range_stay_within_the_tensor():
    """Compiled code does not look at the values of lengths: the loops bound them."""
    a, u = torch.ones(2, 3, 4), torch.ones(4)
    for wrong in (1_000_000, -1_000_000):
        for reverse in (False, True):
            lengths = torch.tensor([wrong, 3])
            h = torch.empty_like(a)
            options = {"lengths": lengths, "reverse": reverse}
            cpu.scan_forward(a, u, None, h, **options)
            cpu.scan_backward(a, None, h, u, None, **options)
            assert torch.equal(h[0, :, 0] == 0, torch.full((3,), wrong < 0))


def test_gradient_of_the_last_state_alone():
    a, u, h0, options = leaves(Case(3, 20, 5, dtype=torch.float64))
    grads = []
    for function, names in ((indrnn_scan, public_options(options)), (reference.scan, options)):
        grads.append(torch.autograd.grad(function(a, u, h0, **names)[1].sum(), (a, u, h0)))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("padded", torch.float32),
        ("lengths", torch.bfloat16),
        ("packed", torch.float32),
        pytest.param("padded", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("lengths", torch.float32, marks=pytest.mark.slow),
        pytest.param("packed", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_opcheck(form, dtype):
    a, u, h0, options = leaves(Case(3, 6, 4, form=form, has_resets=True, dtype=dtype))
    tensors = [options.get(name) for name in ("lengths", "cu_seqlens", "resets")]
    ops = torch.ops.fastindrnn
    torch.library.opcheck(ops.scan, (a, u, h0, *tensors, "relu", "forward", None))
    torch.library.opcheck(ops.scan, (a, u, None, *tensors, "relu", "reverse", 1.0))
    torch.library.opcheck(ops.scan, (a, u, h0, *tensors, "relu", "both", None))
    options = public_options(options)
    h, h_n = (x.detach().requires_grad_() for x in indrnn_scan(a, u, h0, **options))
    for grad_h_n, direction in ((None, "reverse"), (h_n, "forward"), (h_n, "both")):
        arguments = (a, grad_h_n, h, u, h0, *tensors, "hardtanh", direction, 1.0)
        torch.library.opcheck(ops.scan_backward, arguments)
    x = torch.randn(*a.shape[:-1], 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    some = torch.randn(4, dtype=dtype, requires_grad=True)
    for bias, direction in ((None, "forward"), (some, "reverse"), (some, "both")):
        options = "relu", direction, None, "auto"
        torch.library.opcheck(ops.indrnn, (x, weight, bias, u, h0, *tensors, *options))


def test_compile_forward_and_backward():
    def loss(a, u, h0):
        h, h_n = indrnn_scan(a, u, h0, grad_clip=1.0)
        return (h * 2).sum() + h_n.sum()

    a, u, h0, _ = leaves(Case(3, 20, 5))
    expected = torch.autograd.grad(loss(a, u, h0), (a, u, h0))
    compiled = torch.compile(loss, fullgraph=True)
    actual = torch.autograd.grad(compiled(a, u, h0), (a, u, h0))
    torch.testing.assert_close(actual, expected)


@pytest.mark.triton
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_a_scan_in_both_directions_is_two_scans(form, backend):
    """Each on its half of the channels: outputs, states, gradients; and a batch of models."""
    a, u, h0, options = leaves(Case(2, 7, 6, form=form, has_resets=True))
    del options["reverse"]
    halves = [x.chunk(2, -1) for x in (a, u, h0)]
    with fastindrnn.backend(backend):
        pairs = zip(*halves, strict=True)
        parts = [
            indrnn_scan(*part, direction=direction, **options)
            for part, direction in zip(pairs, ("forward", "reverse"), strict=True)
        ]
        both = indrnn_scan(a, u, h0, direction="both", **options)
        us = torch.stack((u, u / 2))
        models = torch.vmap(lambda u: indrnn_scan(a, u, h0, direction="both", **options))(us)
    expected = tuple(torch.cat(pair, -1) for pair in zip(*parts, strict=True))
    found = []
    for h, h_n in (both, expected, (models[0][0], models[1][0])):
        loss = h.sin().sum() + h_n.cos().sum()
        found.append((h, h_n, *torch.autograd.grad(loss, (a, u, h0), retain_graph=True)))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[1])


def test_strided_and_expanded_inputs():
    a, u = torch.randn(4, 9, 12), torch.rand(12)
    expected = reference.scan(a, u)[0]
    for other in (
        a.transpose(0, 1).contiguous().transpose(0, 1),
        a.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([a, a], -1)[..., 0],
        torch.cat([a, a], -1)[..., :12],
    ):
        torch.testing.assert_close(indrnn_scan(other, u)[0], expected)
    row = a[:1, :1].requires_grad_()
    h, _ = indrnn_scan(row.expand(4, 9, 12), u)
    torch.testing.assert_close(h, reference.scan(row.expand(4, 9, 12), u)[0])
    (grad,) = torch.autograd.grad(h.sum(), row)
    (expected,) = torch.autograd.grad(reference.scan(row.expand(4, 9, 12), u)[0].sum(), row)
    torch.testing.assert_close(grad, expected)


class Names(TorchDispatchMode):
    """Writes down the operators that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_modes_tracers_and_compilers_see_the_operator():
    """Without gradients too: dispatch modes, tracers, compilers, vmap, autocast, fake tensors."""
    x, weight, u = torch.randn(2, 7, 3), torch.randn(4, 3), torch.rand(4)

    def call(x):
        return indrnn_scan(indrnn(x, weight, None, u)[0], u)[0]

    names = ("fastindrnn.indrnn", "fastindrnn.scan")
    expected = call(x.requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(call(x), expected, rtol=0, atol=0)
        with Names() as mode:
            call(x)
        assert all(any(name in seen for seen in mode.seen) for name in names)
        graph = torch.fx.experimental.proxy_tensor.make_fx(call)(x.detach())
        assert all(name in graph.code for name in names)
        torch.testing.assert_close(graph(x.detach()), expected)
        traced = torch.jit.trace(call, x.detach(), check_trace=False)
        assert all(name.replace(".", "::") in str(traced.inlined_graph) for name in names)
        torch.testing.assert_close(torch.compile(call, fullgraph=True)(x), expected)
        mapped = torch.vmap(call)(torch.stack([x, x]))
        torch.testing.assert_close(mapped, torch.stack([expected, expected]))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert call(mode.from_tensor(x)).shape == expected.shape
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert indrnn(x, weight, None, u)[0].dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(call(x.detach()), expected)


def test_backend_is_a_switch_and_a_context():
    a, u = torch.randn(1, 3, 2), torch.rand(2)
    with fastindrnn.backend("reference"):
        assert fastindrnn.backend.current == "reference"
        inside = indrnn_scan(a, u)[0]
        with fastindrnn.backend("cpu"):
            assert fastindrnn.backend.current == "cpu"
        assert fastindrnn.backend.current == "reference"
    assert fastindrnn.backend.current is None
    torch.testing.assert_close(indrnn_scan(a, u)[0], inside)
    fastindrnn.backend("cpu")
    assert fastindrnn.backend.current == "cpu"
    fastindrnn.backend(None)
    with pytest.raises(ValueError, match="'cuda'"):
        fastindrnn.backend("cuda")


def test_triton_on_cpu_tensors_needs_the_interpreter():
    script = """if True:
        import os, sys, torch, fastindrnn
        os.environ.pop("TRITON_INTERPRET", None)
        assert "triton" not in sys.modules, "imported before it is needed"
        fastindrnn.functional.indrnn_scan(torch.randn(1, 3, 2), torch.rand(2))
        assert "triton" not in sys.modules, "imported for CPU tensors"
        fastindrnn.backend("triton")
        try:
            fastindrnn.functional.indrnn_scan(torch.randn(1, 3, 2), torch.rand(2))
        except ValueError as error:
            assert "TRITON_INTERPRET" in str(error)
        else:
            raise AssertionError("no error")
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_self_check_command():
    done = subprocess.run([sys.executable, "-m", "fastindrnn"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert fastindrnn.__version__ in done.stdout
    assert "self-check on cpu" in done.stdout
    assert "passed" in done.stdout


def test_without_triton_there_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backends._gpu.cache_clear()
    with fastindrnn.backend("triton"), pytest.raises(ModuleNotFoundError, match="need Triton"):
        indrnn_scan(torch.randn(1, 2, 3), torch.rand(3))
