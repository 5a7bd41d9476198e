"""Operators: first and second derivatives, opcheck, compile, autocast, backends."""

import subprocess
import sys

import pytest
import torch
from fastindrnn.kernels import cpu, reference
from hypothesis import given, settings
from scan_cases import Case, cases, inputs
from tolerance import assert_close_to_reference

import fastindrnn
from fastindrnn.functional import indrnn, indrnn_scan


def leaves(case):
    """Inputs without NaN, as leaves that require gradients."""
    (a, u, h0, options), _ = inputs(case)
    a = torch.where(a.isnan(), 0, a).requires_grad_()
    return a, u.requires_grad_(), None if h0 is None else h0.requires_grad_(), options


@settings(max_examples=50, deadline=None)
@given(cases(T=5, N=3, dtype=torch.float64, time_first=False))
def test_first_and_second_derivatives(case):
    """By finite differences without a clip; with one, against the reference's autograd."""
    *arguments, options = leaves(case)
    wanted = [x for x in arguments if x is not None]
    if case.grad_clip is None and arguments[0].numel():

        def call(*x):
            return indrnn_scan(x[0], x[1], *x[2:], **options)

        assert torch.autograd.gradcheck(call, wanted)
        assert torch.autograd.gradgradcheck(call, wanted)
    results = []
    for function in (indrnn_scan, reference.scan):
        h, h_n = function(*arguments, **options, grad_clip=case.grad_clip)
        loss = h.sin().sum() + h_n.cos().sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        norm = sum(x.square().sum() for x in first) + 0 * loss
        second = torch.autograd.grad(norm, wanted, materialize_grads=True)
        results.append((h, h_n, *first, *second))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["message", "result"])
def test_clip_modes(mode):
    a, u, h0, options = leaves(Case(3, 20, 5, dtype=torch.float64))
    grads = []
    for function in (indrnn_scan, reference.scan):
        h, _ = function(a, u, h0, **options, grad_clip=0.3, grad_clip_mode=mode)
        grads.append(torch.autograd.grad(h.square().sum(), (a, u, h0)))
    torch.testing.assert_close(*grads)
    assert grads[0][0].abs().max() == 0.3


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_gradients(time_first, has_bias):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x.transpose(0, 1) if time_first and x.dim() == 3 else x).requires_grad_()

    x = normal(4, 3, 2) if time_first else normal(3, 4, 2)
    arguments = [x, normal(5, 2), normal(5) if has_bias else None, normal(5), normal(3, 5)]
    wanted = [x for x in arguments if x is not None]

    def call(*wanted):
        values = iter(wanted)
        return indrnn(*[None if x is None else next(values) for x in arguments])

    assert torch.autograd.gradcheck(call, wanted)
    assert torch.autograd.gradgradcheck(call, wanted)
    h = call(*wanted)[0]
    assert h.stride(-1) == 1
    assert (h.stride(0) < h.stride(1)) == time_first


@pytest.mark.parametrize("mode", ["message", "result"])
def test_layer_clip_modes(mode):
    """The bias, as the weight, gets the sum of clipped gradients, not a clipped sum."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 40, 2), (5, 2), (5,), (5,), (3, 5))
    arguments = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    grads = []
    for backend in (None, "reference"):
        with fastindrnn.backend(backend):
            h, _ = indrnn(*arguments, grad_clip=0.3, grad_clip_mode=mode)
            grads.append(torch.autograd.grad(h.square().sum(), arguments))
    torch.testing.assert_close(*grads)
    assert grads[0][2].abs().max() > 0.3


@pytest.mark.parametrize("backend", [None, "reference"])
def test_nan_in_the_padding_reaches_nothing(backend):
    x, w = torch.randn(3, 7, 2), torch.randn(5, 2, requires_grad=True)
    b, u = torch.randn(5, requires_grad=True), torch.rand(5, requires_grad=True)
    lengths = torch.tensor([7, 3, 0])
    x[torch.arange(7) >= lengths[:, None]] = torch.nan
    x.requires_grad_()
    with fastindrnn.backend(backend):
        h, h_n = indrnn(x, w, b, u, lengths=lengths)
        grads = torch.autograd.grad(h.sum() + h_n.sum(), (x, w, b, u))
    assert all(value.isfinite().all() for value in (h, h_n, *grads))


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


def test_layer_keeps_no_preactivation():
    """Beyond x, the weights and h, nothing of the size of h is saved for the backward."""
    x, w = torch.randn(4, 50, 32, requires_grad=True), torch.randn(32, 32, requires_grad=True)
    b, u = torch.randn(32, requires_grad=True), torch.rand(32, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        h, _ = indrnn(x, w, b, u)
    large = {pointer for pointer, size in saved.items() if size >= h.numel()}
    assert large == {x.data_ptr(), h.data_ptr()}


def test_gradient_of_the_last_state_alone():
    a, u, h0, options = leaves(Case(3, 20, 5, dtype=torch.float64))
    grads = []
    for function in (indrnn_scan, reference.scan):
        grads.append(torch.autograd.grad(function(a, u, h0, **options)[1].sum(), (a, u, h0)))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_opcheck(form, dtype):
    a, u, h0, options = leaves(Case(3, 6, 4, form=form, has_resets=True, dtype=dtype))
    tensors = [options.get(name) for name in ("lengths", "cu_seqlens", "resets")]
    ops = torch.ops.fastindrnn
    torch.library.opcheck(ops.scan, (a, u, h0, *tensors, "relu", False, None, "message"))
    torch.library.opcheck(ops.scan, (a, u, None, *tensors, "relu", True, 1.0, "result"))
    h, h_n = (x.detach().requires_grad_() for x in indrnn_scan(a, u, h0, **options))
    for grad_h_n in (None, h_n):
        arguments = (a, grad_h_n, h, u, h0, *tensors, "hardtanh", True, 1.0)
        torch.library.opcheck(ops.scan_backward, arguments)
    x = torch.randn(*a.shape[:-1], 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    for bias in (None, torch.randn(4, dtype=dtype, requires_grad=True)):
        arguments = (x, weight, bias, u, h0, *tensors, "relu", False, None, "message")
        torch.library.opcheck(ops.indrnn, arguments)


def test_compile_forward_and_backward():
    def loss(a, u, h0):
        h, h_n = indrnn_scan(a, u, h0, grad_clip=1.0)
        return (h * 2).sum() + h_n.sum()

    a, u, h0, _ = leaves(Case(3, 20, 5))
    expected = torch.autograd.grad(loss(a, u, h0), (a, u, h0))
    compiled = torch.compile(loss, fullgraph=True)
    actual = torch.autograd.grad(compiled(a, u, h0), (a, u, h0))
    torch.testing.assert_close(actual, expected)


def test_autocast_keeps_u_and_state_in_float32():
    """A product in bfloat16; |u| = 0.999, which bfloat16 rounds to 1, still fades."""
    x, weight = torch.randn(2, 8, 4), torch.randn(6, 4, requires_grad=True)
    bias = torch.zeros(6, requires_grad=True)
    u = torch.full((6,), 0.999, requires_grad=True)
    h0 = torch.ones(2, 6)
    with torch.autocast("cpu"):
        h, h_n = indrnn(x, weight, bias, u, h0)
        still = indrnn(torch.zeros(2, 1000, 4), weight, bias, u, h0)[1]
    assert h.dtype == h_n.dtype == torch.bfloat16
    a = torch.nn.functional.linear(x.bfloat16(), weight.bfloat16())
    expected = reference.scan(a.double(), u.double(), h0.double())[0]
    assert_close_to_reference(h, expected, reference.scan(a, u, h0)[0])
    torch.testing.assert_close(still.float(), torch.full((2, 6), 0.999**1000), rtol=0.01, atol=0)
    h.float().sum().backward()
    assert {x.grad.dtype for x in (weight, bias, u)} == {torch.float32}


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
