"""Chunks of time, in Triton: for any u, infinities and NaN, the result is that of a single loop."""

import emulator
import pytest
import torch
import triton_cases
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import (
    cases,
    check_that_an_infinite_output_is_at_no_bound,
    check_that_nan_in_the_gradient_lasts_until_a_bound,
    check_that_nan_lasts_until_a_reset,
    gradients_by_formula,
    inputs,
)
from tolerance import assert_close_to_reference
from triton_cases import INFINITIES, INTERPRETED, MAY_OVERFLOW, scan_backward, scan_forward

from fastindrnn.kernels import reference

pytestmark = [pytest.mark.triton, MAY_OVERFLOW, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_lasts_until_a_reset(nonlinearity, chunks):
    options = {"nonlinearity": nonlinearity, "chunks": chunks, "rows": 4}
    check_that_nan_lasts_until_a_reset(scan_forward, **options)


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_in_the_gradient_lasts_until_a_bound(grad_clip, chunks):
    options = {"grad_clip": grad_clip, "chunks": chunks, "rows": 4}
    check_that_nan_in_the_gradient_lasts_until_a_bound(scan_backward, **options)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_an_infinite_output_is_at_no_bound(nonlinearity, chunks):
    check_that_an_infinite_output_is_at_no_bound(triton_cases, nonlinearity, chunks=chunks, rows=4)


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6"])
def test_bounds_hold_infinities(nonlinearity):
    """The map of a chunk has no inf - inf and no 0 * inf of infinities that a bound has ended."""
    a = torch.zeros(3, 40, 6)
    a[0, 3], a[0, 17] = -torch.inf, -torch.inf
    if nonlinearity != "relu":
        a[1, 3], a[2, 3], a[2, 4] = torch.inf, -torch.inf, torch.inf
    u = torch.tensor([0.0, 1e-9, -0.5, 1.0, 1e25, -1e25])
    if nonlinearity == "relu" and INTERPRETED:
        a, u = a[..., :4].contiguous(), u[:4]  # numpy does not fuse: u * largest overflows first
    h = torch.zeros_like(a)
    scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u, nonlinearity=nonlinearity)[0])


@pytest.mark.parametrize("u", [-0.5, -1.0, -1.5])
def test_an_infinite_input_ends_at_the_bound(u):
    """The first step of a chunk adds an input of inf to u times the upper end of all states, -inf.
    That NaN must not come of a finite state: it becomes inf, and 0 after the next step."""
    a = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(3))
    a[0, 16, 1], a[0, 24, 2] = torch.inf, torch.inf
    h, u = torch.zeros_like(a), torch.full((3,), u)
    scan_forward(a, u, None, h, chunks=5, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u)[0])
    assert h.isfinite().sum() == h.numel() - 2


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_infinities_as_step_by_step(nonlinearity, chunks):
    """One at a time and one after the other, within a chunk, across its end, and in h0."""
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -0.5, 1.0, -1.0, 1.7, -1.7])
    pairs = [(x, y) for x in INFINITIES for y in (None, *INFINITIES)]
    a = torch.randn(len(pairs) + 3, 40, len(u))
    h0 = torch.randn(len(a), len(u))
    h0[-3:] = torch.tensor(INFINITIES)[:, None]
    for b, (x, y) in enumerate(pairs):
        a[b, 5] = x
        if y is not None:
            a[b, (6, 8, 9, 21)[b % 4]] = y
    expected, expected_n = reference.scan(a, u, h0, nonlinearity=nonlinearity)
    h = torch.empty_like(a)
    options = {"nonlinearity": nonlinearity, "chunks": chunks, "rows": 4, "block_n": 16}
    h_n = scan_forward(a, u, h0, h, **options)
    torch.testing.assert_close(h, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h_n, expected_n, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [2, 5])
def test_an_infinite_state_stays_infinite_in_segments_that_grow(chunks):
    a = torch.zeros(1, 200, 4)
    a[0, 7], a[0, 8, 1] = torch.inf, -torch.inf
    u, h = torch.tensor([2.5, 2.5, 3.0, -3.0]), torch.empty(1, 200, 4)
    scan_forward(a, u, None, h, chunks=chunks, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u)[0], equal_nan=True)


def test_zero_times_an_overflowed_product_is_zero():
    """A chunk multiplies the state before it by u^steps, which here overflows; 0 stays 0."""
    a, u, h = torch.zeros(1, 40, 2), torch.tensor([1e9, -1e9]), torch.empty(1, 40, 2)
    for nonlinearity in ("relu", "identity"):
        scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5, rows=4)
        assert (h == 0).all()


def test_odd_numbers_of_steps_with_a_negative_u_swap_their_ends():
    """Such a map is decreasing: the image of the lower end of the domain is the upper bound."""
    a, u, h = torch.ones(1, 24, 2), torch.tensor([-0.5, -0.9]), torch.empty(1, 24, 2)
    scan_forward(a, u, None, h, chunks=8, rows=3)
    torch.testing.assert_close(h, reference.scan(a, u)[0])


@emulator.examples(12)
@given(
    cases(T=60, N=6, B=1, form="padded", grad_clip=None).filter(
        lambda case: case.nonlinearity != "tanh" and case.dtype.itemsize > 2
    ),
    st.sampled_from([2, 3]),
    st.floats(1.0, 6.0),
)
def test_chunks_join_whatever_u(case, chunks, most):
    """Each step multiplies errors by u; so every h is compared with one step from the h before."""
    (a, u, h0, options), _ = inputs(case)
    u = u * most
    whole, h = torch.empty_like(a), torch.empty_like(a)
    scan_forward(a, u, h0, whole, **options, chunks=1, rows=2, block_n=8)
    scan_forward(a, u, h0, h, **options, chunks=chunks, rows=2, block_n=8)
    assert torch.equal(h.isfinite(), whole.isfinite())
    if case.reverse:
        a, h = a.flip(1), h.flip(1)
    before = torch.cat([torch.zeros(1, 1, case.N) if h0 is None else h0[:, None], h], 1)[:, :-1]
    if "resets" in options:
        resets = options["resets"].flip(1) if case.reverse else options["resets"]
        before = torch.where(resets[..., None], 0, before)
    z = a.double() + u.double() * before.double()
    expected = reference.ACTIVATIONS[case.nonlinearity](z)
    whole = h.isfinite() & before.isfinite()
    torch.testing.assert_close(h.double()[whole], expected[whole], rtol=0.1, atol=1e-3)


# By nonlinearity: the scale and the shift of inputs that keep the state small.
GROWTH = {"relu": (1.0, -3.0), "hardtanh": (0.05, 0.0), "relu6": (1.0, -3.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonlinearity", list(GROWTH))
def test_segments_that_grow(nonlinearity, dtype):
    """u**steps of a chunk overflows, while the bounds, or inputs below 0, keep the state small."""
    scale, shift = GROWTH[nonlinearity]
    T, most = (270, 3.0) if dtype == torch.float32 else (1260, 8.0)
    a = scale * torch.randn(1, T, 16, dtype=dtype) + shift
    u = torch.linspace(0.9 * most, most, 16, dtype=dtype)
    u[::3] *= -1
    h, h0 = torch.empty_like(a), 3 * torch.randn(1, 16, dtype=dtype)
    options = {"nonlinearity": nonlinearity}
    # Of three chunks the second one's map is applied: the first is a constant.
    h_n = scan_forward(a, u, h0, h, **options, chunks=3, rows=8, block_n=16)
    expected = reference.scan(a.double(), u.double(), h0.double(), **options)
    loop = reference.scan(a, u, h0, **options)
    for what, *three in zip(("h", "h_n"), (h, h_n), expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)


def test_a_state_below_the_threshold_of_a_growing_segment_fades():
    """1.2 becomes 3 * 1.2 - 3 = 0.6 and then 0, though 3**96 * 1.2 is infinite."""
    a = torch.full((1, 288, 4), -3.0)
    a[0, 95] = 1.2
    u, h = torch.full((4,), 3.0), torch.empty_like(a)
    scan_forward(a, u, None, h, chunks=3, rows=8)
    assert torch.equal(h, reference.scan(a, u)[0])


def test_a_state_escapes_to_infinity_as_without_chunks():
    """u > 1 without an upper bound: the state becomes infinite at the same step as in the loop."""
    a = torch.full((1, 240, 3), 0.1)
    u, h = torch.tensor([1.5, 2.0, 1.9]), torch.empty(1, 240, 3)
    h_n = scan_forward(a, u, None, h, chunks=2, rows=8)
    expected, expected_n = reference.scan(a, u)
    assert torch.equal(h.isinf(), expected.isinf())
    assert h.isinf().any()
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(h_n, expected_n)


@pytest.mark.parametrize("grad_clip", [None, 0.5])
def test_gradients_that_grow(grad_clip):
    """Segments of the backward grow too; outputs at a bound block gradients, or a clip does."""
    (B, T, N), u = (1, 360, 12), torch.linspace(2.5, 3.0, 12)
    u[::4] *= -1
    h = torch.randn(B, T, N).clamp(min=0 if grad_clip is None else 0.1)
    grad_h, grad_h_n = 0.05 * torch.randn(B, T, N), torch.randn(B, N)
    arguments = (grad_h, grad_h_n, h, u, None)
    clip = {"grad_clip": grad_clip}
    actual = scan_backward(*arguments, **clip, chunks=3, rows=8, block_n=16)
    options = {"nonlinearity": "relu", "reverse": False, **clip}
    expected = gradients_by_formula(*(x if x is None else x.double() for x in arguments), **options)
    loop = gradients_by_formula(*arguments, **options)
    for what, *three in zip(("a", "u", "h0", "b"), actual, expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)
