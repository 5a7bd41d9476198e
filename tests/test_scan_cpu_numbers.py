"""NaN, infinities, subnormal numbers and 16-bit floats in the recurrence on a CPU."""

import pytest
import torch
from scan_cases import (
    Case,
    check_that_an_infinite_output_is_at_no_bound,
    check_that_nan_in_the_gradient_lasts_until_a_bound,
    check_that_nan_lasts_until_a_reset,
    inputs,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastindrnn.kernels import cpu, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
half_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.mark.parametrize("nonlinearity", list(reference.ACTIVATIONS))
def test_nan_stays_in_its_channel(nonlinearity):
    (a, u, h0, options), _ = inputs(Case(2, 30, 20, nonlinearity=nonlinearity))
    a[1, 7, 3] = torch.nan
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, h0, h, **options)
    assert torch.equal(h.isnan(), reference.scan(a, u, h0, **options)[0].isnan())
    assert h[1, 7:, 3].isnan().all()


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_lasts_until_a_reset(nonlinearity, chunks):
    options = {"nonlinearity": nonlinearity, "chunks": chunks}
    check_that_nan_lasts_until_a_reset(cpu.scan_forward, **options)


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_in_the_gradient_lasts_until_a_bound(grad_clip, chunks):
    options = {"grad_clip": grad_clip, "chunks": chunks}
    check_that_nan_in_the_gradient_lasts_until_a_bound(cpu.scan_backward, **options)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_an_infinite_output_is_at_no_bound(nonlinearity, chunks):
    check_that_an_infinite_output_is_at_no_bound(cpu, nonlinearity, chunks=chunks)


def test_an_infinite_state_lasts_with_any_number_of_threads():
    a = torch.randn(1, 4096, 128, generator=torch.Generator().manual_seed(0))
    a[0, 100, 5] = torch.inf
    u, threads = torch.linspace(-0.99, 0.99, 128), torch.get_num_threads()
    u[5] = 0.5
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            h = torch.empty_like(a)
            h_n = cpu.scan_forward(a, u, None, h)
            assert h_n[0, 5] == torch.inf
            assert (h[0, 100:, 5] == torch.inf).all()
            assert h[0, :, :5].isfinite().all()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_fades_becomes_zero_and_not_subnormal(dtype):
    """Arithmetic with subnormal numbers is tens of times slower, and rounding keeps them alive."""
    a = torch.zeros(1, 4000, 8, dtype=dtype)
    a[:, 0] = 1
    u = torch.linspace(0.3, 0.9, 8, dtype=dtype)
    h, grad_h = torch.empty_like(a), torch.zeros_like(a)
    cpu.scan_forward(a, u, None, h, nonlinearity="identity")
    grad_h[:, -1] = 1
    grad_a, *_ = cpu.scan_backward(grad_h, None, h, u, None, nonlinearity="identity")
    for x in (h, grad_a):
        assert not ((x != 0) & (x.abs() < torch.finfo(dtype).tiny)).any()
        assert (x != 0).any(1).all()


def _assert_equal_with_nan(x, y):
    assert torch.equal(x.isnan(), y.isnan())
    assert torch.equal(x.nan_to_num(0), y.nan_to_num(0))


@half_precision
def test_every_16_bit_number_is_read_and_written_unchanged(dtype):
    """But for a subnormal bfloat16, which is subnormal in float32 too and so becomes 0."""
    a = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1)
    h, u = torch.empty_like(a), torch.zeros(a.shape[-1])
    cpu.scan_forward(a, u, None, h, nonlinearity="identity")
    is_subnormal = a.float().abs() < torch.finfo(torch.float32).tiny
    _assert_equal_with_nan(h, torch.where(is_subnormal, 0, a))


@half_precision
def test_16_bit_numbers_are_rounded_as_torch_rounds(dtype):
    """Numbers of every size, and those halfway between two 16-bit numbers with their neighbours."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1, 200_000), generator=generator)
    numbers = [bits.to(torch.int32).view(torch.float32)]
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1)
    halfway = every.float().view(torch.int32) + (1 << (15 if dtype == torch.bfloat16 else 12))
    numbers += [(halfway + i).view(torch.float32) for i in (-1, 0, 1)]
    numbers += [torch.randn(1, 200_000, generator=generator) * scale for scale in (1e-5, 1, 3e4)]
    h0 = torch.cat(numbers, 1)
    a = torch.zeros(1, 1, h0.shape[1], dtype=dtype)
    h = torch.empty_like(a)
    cpu.scan_forward(a, torch.ones(h0.shape[1]), h0, h, nonlinearity="identity")
    is_subnormal = h0.abs() < torch.finfo(torch.float32).tiny
    _assert_equal_with_nan(h[0], torch.where(is_subnormal, 0, h0).to(dtype))


@half_precision
def test_half_precision_makes_no_float32_copies(dtype):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor) and x.numel() >= a.numel():
                    assert x.dtype == dtype
            return result

    a, u, h0 = torch.randn(2, 50, 8).to(dtype), torch.rand(8).to(dtype), torch.rand(2, 8).to(dtype)
    weight, bias = torch.randn(8, 8).to(dtype), torch.randn(8).to(dtype)
    h = torch.empty_like(a)
    with Recorder():
        cpu.scan_forward(a, u, h0, h)
        cpu.scan_backward(a, h0, h, u, h0)
        cpu.indrnn_forward(a, weight, bias, u, h0, h)
        cpu.projected_backward(a, weight, h0, h, u, h0)


@half_precision
def test_a_wider_initial_state_is_not_rounded(dtype):
    """Under autocast h0 stays float32, as u does."""
    a, u, h0 = torch.ones(1, 1, 4, dtype=dtype), torch.rand(4), torch.full((1, 4), 1.003)
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, h0, h)
    _, grad_u, _, _ = cpu.scan_backward(torch.ones_like(h), None, h, u, h0)
    torch.testing.assert_close(grad_u, h0[0])
