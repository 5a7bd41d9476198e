"""The recurrence on a CPU against the reference: shapes, options and memory."""

import pytest
import torch
from hypothesis import given, settings
from scan_cases import Case, cases, check_scan, inputs

from fastindrnn.kernels import cpu

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@settings(max_examples=300, deadline=None)
@given(cases(T=60, N=130))
def test_against_reference(case):
    check_scan(case, cpu.scan_forward, cpu.scan_backward)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 70, 1100), (33, 20, 129), (3, 400, 65), (2, 2, 20_000)])
def test_several_threads_and_channel_blocks(shape, dtype, reverse):
    case = Case(*shape, dtype=dtype, reverse=reverse, form="lengths", grad_clip=2.0)
    check_scan(case, cpu.scan_forward, cpu.scan_backward)


@pytest.mark.parametrize("reverse", [False, True])
def test_time_first_batch(reverse):
    """Run as one sequence of 33 * 129 channels, more than one channel block."""
    case = Case(33, 50, 129, reverse=reverse, time_first=True, grad_clip=2.0)
    check_scan(case, cpu.scan_forward, cpu.scan_backward)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(shape):
    B, T, N = shape
    a, u, h0 = torch.randn(shape), torch.rand(N), torch.randn(B, N)
    h = torch.empty_like(a)
    h_n = cpu.scan_forward(a, u, h0, h)
    grads = cpu.scan_backward(torch.randn(shape), torch.ones(B, N), h, u, h0)
    assert [grad.shape for grad in grads] == [shape, (N,), (B, N), (N,)]
    if T == 0:
        assert torch.equal(h_n, h0)
        assert torch.equal(grads[2], torch.ones(B, N))


@pytest.mark.parametrize("reverse", [False, True])
def test_forward_in_place(reverse):
    (a, u, h0, options), _ = inputs(Case(3, 50, 300, reverse=reverse))
    h = torch.full_like(a, torch.nan)
    cpu.scan_forward(a, u, h0, h, **options)
    cpu.scan_forward(a, u, h0, a, **options)
    assert torch.equal(a, h)


def test_given_memory_for_grad_a():
    """Among other channels and in another order of batch and time than h; or that of grad_h."""
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(Case(3, 20, 33, form="lengths"))
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, h0, h, **options)
    expected = cpu.scan_backward(grad_h, grad_h_n, h, u, h0, **options)
    wide = torch.full((20, 3, 40), 7.0)
    for grad_a in (wide[..., 2:35].transpose(0, 1), grad_h):
        actual = cpu.scan_backward(grad_h, grad_h_n, h, u, h0, **options, grad_a=grad_a)
        assert actual[0].data_ptr() == grad_a.data_ptr()
        for x, y in zip(actual, expected, strict=True):
            assert torch.equal(x, y)
    wide[..., 2:35] = 7.0
    assert (wide == 7.0).all(), "wrote outside of grad_a"


def test_given_memory_for_grad_a_in_half_precision():
    def backward(grad_h, *tensors, **options):
        return cpu.scan_backward(grad_h, *tensors, **options, grad_a=torch.empty_like(grad_h))

    check_scan(Case(2, 9, 5, dtype=torch.bfloat16), cpu.scan_forward, backward)
