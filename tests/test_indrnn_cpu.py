"""The layer on a CPU, product and recurrence, and the gradient through a layer above."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Case, cases, gradients_by_formula, inputs, sizes_of_sums
from tolerance import assert_close_to_reference
from torch.nn.functional import linear

from fastindrnn.kernels import cpu, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def double(*tensors):
    return [None if x is None else x.double() for x in tensors]


def layer_inputs(case, K, has_bias):
    """x of K features in the case's form, weight, bias, u, h0, options, and h to be written."""
    (x, _, _, options), _ = inputs(replace(case, N=K))
    # In half precision torch's matrix product writes a NaN of one time step to the next one, too.
    if case.dtype.itemsize == 2:
        x = torch.where(x.isnan(), 7.0, x)
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(case.dtype)

    u = (torch.rand(case.N, generator=generator) * 2.2 - 1.1).to(case.dtype)
    h0 = normal(case.B, case.N) if case.has_h0 else None
    bias = normal(case.N) if has_bias else None
    h = x.new_full((*x.shape[:-1], case.N), torch.nan)
    if case.time_first and h.dim() == 3:
        h = h.transpose(0, 1).contiguous().transpose(0, 1)
    return x, normal(case.N, K), bias, u, h0, options, h


def expected_layer(a, u, h0, bidirectional, reverse, **options):
    """The reference's h and h_n, of each direction by itself."""
    if not bidirectional:
        return reference.scan(a, u, h0, reverse=reverse, **options)
    halves = [
        reference.scan(
            a.chunk(2, -1)[i],
            u.chunk(2)[i],
            None if h0 is None else h0.chunk(2, -1)[i],
            reverse=reverse != (i == 1),
            **options,
        )
        for i in range(2)
    ]
    return [torch.cat(pair, -1) for pair in zip(*halves, strict=True)]


def check_layer(case, K, has_bias, bidirectional):
    x, weight, bias, u, h0, options, h = layer_inputs(case, K, has_bias)
    h_n = cpu.indrnn_forward(x, weight, bias, u, h0, h, bidirectional=bidirectional, **options)
    x = torch.where(x.isnan(), 0, x)
    if case.dtype.itemsize == 2:  # the product is rounded to 16 bits here as in the kernel
        a = linear(x, weight).double()
        a = a if bias is None else a + bias.double()
    else:
        a = linear(*double(x, weight, bias))
    expected = expected_layer(a, *double(u, h0), bidirectional, **options)
    loop = expected_layer(linear(x, weight, bias), u, h0, bidirectional, **options)
    for what, *three in zip(("h", "h_n"), (h, h_n), expected, loop, strict=True):
        assert three[0].dtype == case.dtype
        assert_close_to_reference(*three, what=what)


@settings(max_examples=150, deadline=None)
@given(cases(T=40, N=70), st.sampled_from([1, 5, 32]), st.booleans(), st.booleans())
def test_layer_against_reference(case, K, has_bias, bidirectional):
    if bidirectional:
        case = replace(case, N=2 * case.N)
    check_layer(case, K, has_bias, bidirectional)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("shape", [(1, 90, 2200), (5, 100, 258), (2, 700, 66)])
def test_several_threads_and_channel_blocks(shape, form, bidirectional):
    case = Case(*shape, form=form, has_resets=True, reverse=shape[0] == 2)
    check_layer(case, 24, True, bidirectional)


@pytest.mark.parametrize("order", ["batch", "time", "strided"])
def test_order_in_memory(order):
    """x and h in any order of batch and time, each in its own."""
    B, T, K, N = 3, 11, 6, 10
    x = torch.randn(B, T, K)
    if order == "time":
        x = torch.randn(T, B, K).transpose(0, 1)
    elif order == "strided":
        x = torch.randn(B, 2 * T, K + 3)[:, ::2, :K]
    weight, u = torch.randn(N, K), torch.rand(N)
    expected, _ = reference.scan(x @ weight.t(), u)
    for h in (torch.empty(B, T, N), torch.empty(T, B, N).transpose(0, 1)):
        cpu.indrnn_forward(x, weight, None, u, None, h)
        torch.testing.assert_close(h, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 3, 4, 0)])
def test_empty(shape):
    B, T, N, K = shape
    x, weight, u, h0 = torch.randn(B, T, K), torch.randn(N, K), torch.rand(N), torch.randn(B, N)
    h = torch.empty(B, T, N)
    h_n = cpu.indrnn_forward(x, weight, None, u, h0, h)
    torch.testing.assert_close((h, h_n), reference.scan(x @ weight.t(), u, h0))


def test_fused_strategy_is_refused():
    x, h = torch.randn(2, 3, 4), torch.empty(2, 3, 4)
    eye, u = torch.eye(4), torch.ones(4)
    with pytest.raises(ValueError, match="'fused'"):
        cpu.indrnn_forward(x, eye, None, u, None, h, strategy="fused")
    with pytest.raises(ValueError, match="'fused'"):
        cpu.projected_backward(x, eye, None, h, u, None, strategy="fused")


@settings(max_examples=150, deadline=None)
@given(cases(T=40, N=70), st.sampled_from([1, 5, 32]))
def test_gradient_through_the_layer_above(case, M):
    """By the formula of the gradient on the product grad_next @ weight_next."""
    grad_next, weight, _, u, h0, options, h = layer_inputs(case, M, has_bias=False)
    weight_next, clip = weight.t(), {"grad_clip": case.grad_clip}
    a = torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    grad_h_n = h0
    cpu.scan_forward(a, u, h0, h, **options)
    actual = cpu.projected_backward(grad_next, weight_next, grad_h_n, h, u, h0, **options, **clip)
    grad_next = torch.where(grad_next.isnan(), 0, grad_next)
    product = grad_next @ weight_next
    tensors = grad_h_n, h, u, h0
    if case.dtype.itemsize == 2:  # the product is rounded to 16 bits here as in the kernel
        grad_h = product.double()
    else:
        grad_h = grad_next.double() @ weight_next.double()
    expected = gradients_by_formula(grad_h, *double(*tensors), **options, **clip)
    loop = gradients_by_formula(product, *tensors, **options, **clip)
    names = ("grad_a", "grad_u", "grad_h0", "grad_bias")
    magnitudes = sizes_of_sums(expected[0], h, h0)
    for what, *three in zip(names, actual, expected, loop, strict=True):
        assert three[0].dtype == case.dtype
        assert_close_to_reference(*three, what=what, magnitude=magnitudes.get(what, 0.0))


def test_gradient_through_the_layer_above_allocates_one_tensor(monkeypatch):
    """grad_a is written to the memory of the product, and nothing else of that size is made."""
    B, T, N, M = 4, 50, 60, 30
    made = []
    empty_like = torch.empty_like

    def counting(*arguments, **options):
        made.append(empty_like(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(torch, "empty_like", counting)
    h = torch.rand(B, T, N)
    grad_a, *_ = cpu.projected_backward(
        torch.randn(B, T, M), torch.randn(M, N), None, h, torch.rand(N), None
    )
    assert len(made) == 1
    assert grad_a.data_ptr() == made[0].data_ptr()
