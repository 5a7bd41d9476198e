"""Chunks of time on a CPU: the results are those of one chunk, whatever the chunks' maps are."""

import pytest
import torch
from fastindrnn.kernels.cpu.plan import plan
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scan_cases import Case, cases, check_scan, inputs
from tolerance import FLOOR, assert_close_to_reference

from fastindrnn.kernels import cpu, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@settings(max_examples=200, deadline=None)
@given(cases(T=60, N=40), st.integers(1, 9))
def test_against_reference(case, chunks):
    chunks = 1 if case.nonlinearity == "tanh" else chunks
    check_scan(case, cpu.scan_forward, cpu.scan_backward, chunks=chunks)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
def test_as_planned_for_several_threads(nonlinearity):
    """One sequence of few channels: time is divided once there are threads to share it."""
    threads = torch.get_num_threads()
    case = Case(1, 4200, 64, nonlinearity=nonlinearity, grad_clip=2.0, has_resets=True)
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            assert (plan(1, 4200, 64, number, in_place=False).chunks > 1) == (number > 1)
            check_scan(case, cpu.scan_forward, cpu.scan_backward)
    finally:
        torch.set_num_threads(threads)


def test_tanh_allows_one_chunk_only():
    a = torch.zeros(1, 8, 2)
    with pytest.raises(ValueError, match="tanh"):
        cpu.scan_forward(a, torch.ones(2), None, a, nonlinearity="tanh", chunks=2)


@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_both_directions(form):
    (a, u, h0, options), _ = inputs(Case(2, 50, 36, form=form, has_resets=True))
    results = []
    for chunks in (1, 2, 5):
        h = torch.empty_like(a)
        h_n = cpu.scan_forward(a, u, h0, h, **options, bidirectional=True, chunks=chunks)
        results.append((h, h_n))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def _scan_and_gradients(a, u, h0, grad_h, chunks, grad_clip=None, h=None, **options):
    """h, h_n and the gradients, of `h` if it is given, so that two calls start from the same h."""
    result = torch.empty_like(a)
    h_n = cpu.scan_forward(a, u, h0, result, **options, chunks=chunks)
    h = result if h is None else h
    options |= {"grad_clip": grad_clip, "chunks": chunks}
    return result, h_n, *cpu.scan_backward(grad_h, None, h, u, h0, **options)


def _assert_same_kind(x, y):
    """NaN, infinities of either sign and finite numbers are in the same places."""
    for is_kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(is_kind(x), is_kind(y))


def _sizes_of_sums(*, h, h0, grad_a):
    """Bounds of the sums over batch and time of the terms' magnitudes, for each channel and by the
    index of the result: 3 is grad_u, 5 is grad_bias."""

    def magnitudes(x):
        finite = torch.where(x.isfinite(), x, 0).double().abs().flatten(0, -2)
        return finite if len(finite) else finite.new_zeros(1, x.shape[-1])

    states = magnitudes(h) if h0 is None else torch.cat([magnitudes(h), magnitudes(h0)])
    terms = magnitudes(grad_a).sum(0)
    return {3: terms * states.amax(0), 5: terms}


def _zero_where_any_is_not_finite(*tensors):
    finite = torch.stack([x.isfinite() for x in tensors]).all(0)
    return [torch.where(finite, x, 0) for x in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("nonlinearity", "T", "u", "scale", "shift"),
    [
        ("relu", 16384, [1.016], 1, -0.5),
        ("relu", 4096, [1.1, 1.2], 1, -1.5),
        ("relu", 4096, [-1.1, -3.0, 6.0], 1, 0),
        ("relu", 8192, [0.9, 0.99, 1.0, 1.001, 1.01], 1, -0.5),
        ("hardtanh", 4096, [1.3, -1.5, 5.0], 0.05, 0),
        ("hardtanh", 16384, [1.2], 0.05, 0),
        # The reference takes seconds for these.
        pytest.param("relu", 65536, [1.004], 1, -0.5, marks=pytest.mark.slow),
        pytest.param("hardtanh", 65536, [1.05], 0.05, 0, marks=pytest.mark.slow),
        ("relu6", 4096, [1.3, -1.3], 1, -2),
        ("identity", 4096, [0.9, 1.0, -1.0, 1.01, -1.01], 1, 0),
    ],
)
def test_large_powers_of_u(nonlinearity, T, u, scale, shift, dtype):
    """|u|^steps of a chunk overflows, or nearly so, while the states need not: compared with one
    chunk, and with the reference in float64."""
    generator = torch.Generator().manual_seed(0)
    N = 32 * len(u) if T < 10_000 else 64
    a = (torch.randn(1, T, N, generator=generator) * scale + shift).to(dtype)
    grad_h = torch.randn(1, T, N, generator=generator).to(dtype)
    u, options = torch.tensor(u, dtype=dtype).repeat(N // len(u)), {"nonlinearity": nonlinearity}
    forward = reference.scan(a.double(), u.double(), **options)
    double = a.double(), u.double(), None, grad_h.double()
    for grad_clip in (None, 1.0):
        whole = _scan_and_gradients(a, u, None, grad_h, 1, grad_clip, **options)
        h = whole[0]
        _, _, *gradients = _scan_and_gradients(*double, 1, grad_clip, h=h.double(), **options)
        for chunks in (2, 5):
            divided = _scan_and_gradients(a, u, None, grad_h, chunks, grad_clip, h=h, **options)
            for x, y, exact in zip(divided, whole, (*forward, *gradients), strict=True):
                _assert_same_kind(x, y)
                tensors = _zero_where_any_is_not_finite(x, exact, y)
                assert_close_to_reference(*tensors, dtype=dtype)


@settings(max_examples=150, deadline=None)
@example(Case(3, 121, 1, has_h0=False, has_grad_h_n=False), 2, 0.0, False)  # grad_bias may overflow
@given(
    cases(T=160, N=20).filter(lambda case: case.nonlinearity != "tanh"),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.003, 0.03]),
    st.booleans(),
)
def test_never_decide_what_is_finite(case, chunks, share, starts_with_zeros):
    """|u| is up to 6, or 0; a `share` of a, grad_h and h0 is infinite or NaN; the first 80 % of
    the steps may be 0 in a, and the last 80 % in grad_h."""
    (a, u, h0, options), (grad_h, _) = inputs(case)
    generator = torch.Generator().manual_seed(case.seed)
    factors = torch.tensor([0.0, 1.0, 1.0, 3.0, 5.4])
    u = u * factors[torch.randint(5, u.shape, generator=generator)].to(u.dtype)
    for x in (a, grad_h) if h0 is None else (a, grad_h, h0):
        not_finite = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.nan])
        not_finite = not_finite[torch.randint(4, x.shape, generator=generator)].to(x.dtype)
        chosen = torch.rand(x.shape, generator=generator) < share
        x.copy_(torch.where(chosen, not_finite, x))
    if starts_with_zeros and a.dim() == 3:
        a[:, : int(0.8 * a.shape[1])] = 0
        grad_h[:, int(0.2 * a.shape[1]) :] = 0
    options["grad_clip"] = case.grad_clip
    whole = _scan_and_gradients(a, u, h0, grad_h, 1, **options)
    divided = _scan_and_gradients(a, u, h0, grad_h, chunks, h=whole[0], **options)
    sizes = _sizes_of_sums(h=whole[0], h0=h0, grad_a=whole[2])
    floor, accumulator = FLOOR[case.dtype], torch.promote_types(case.dtype, torch.float32)
    for i, (x, y) in enumerate(zip(divided, whole, strict=True)):
        if i in sizes:
            # The order of the terms, which chunks change, decides whether the sum is finite. Half,
            # as grad_a has been rounded.
            may_overflow = sizes[i] > torch.finfo(case.dtype).max / 2
            x, y = (torch.where(may_overflow, 0, z) for z in (x, y))
        _assert_same_kind(x, y)
        x, y = (z.double() for z in _zero_where_any_is_not_finite(x, y))
        largest = y.abs().max() if y.numel() else 0
        # Where terms cancel, the error of their sum is of their size.
        of_terms = 4 * torch.finfo(accumulator).eps * sizes.get(i, 0)
        assert ((x - y).abs() <= floor * (largest + 4 * y.abs()) + of_terms).all(), i


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6"])
@pytest.mark.parametrize("negative", [False, True])
def test_bounds_hold_infinities(nonlinearity, negative):
    """A map has no inf - inf and no 0 * inf where a bound has made a state finite."""
    a = torch.zeros(3, 40, 6)
    a[0, 3], a[0, 17] = -torch.inf, -torch.inf
    if nonlinearity != "relu":
        a[1, 3], a[2, 3], a[2, 4] = torch.inf, -torch.inf, torch.inf
    u = torch.tensor([0.0, 1e-9, 0.5, 1.0, 1e25, 1e9]) * (-1 if negative else 1)
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5)
    torch.testing.assert_close(h, reference.scan(a, u, nonlinearity=nonlinearity)[0])


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
def test_zero_times_an_overflowed_power_of_u_is_zero(nonlinearity):
    a, u, h = torch.zeros(1, 40, 2), torch.tensor([1e9, -1e9]), torch.empty(1, 40, 2)
    cpu.scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5)
    assert (h == 0).all()


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6", "identity"])
def test_input_that_begins_after_powers_of_u_have_overflowed(nonlinearity):
    u = torch.tensor([1.3, -1.3, 2.0, -6.0, 0.5])
    a = torch.zeros(1, 3000, 5)
    a[:, 2980:] = 0.1
    h, options = torch.empty_like(a), {"nonlinearity": nonlinearity}
    for chunks in (2, 3, 5):
        cpu.scan_forward(a, u, None, h, **options, chunks=chunks)
        torch.testing.assert_close(h, reference.scan(a, u, **options)[0])


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
def test_fixed_point_of_a_threshold(nonlinearity):
    """1 = 2 * 1 - 1 for ever, while the least deviation would grow beyond all numbers."""
    a, u, h0 = torch.full((1, 400, 3), -1.0), torch.full((3,), 2.0), torch.ones(1, 3)
    for chunks in (1, 2, 5):
        h = torch.empty_like(a)
        cpu.scan_forward(a, u, h0, h, nonlinearity=nonlinearity, chunks=chunks)
        assert (h == 1).all()


def test_fixed_point_of_a_map_with_large_q():
    """16 = 1.375 * 16 - 6. After 120 steps P is -6.3e17, and P + Q * 16 is rounding alone."""
    a, u, h0 = torch.full((1, 300, 8), -6.0), torch.full((8,), 1.375), torch.full((1, 8), 16.0)
    for chunks in (1, 2, 3, 5):
        h = torch.empty_like(a)
        cpu.scan_forward(a, u, h0, h, chunks=chunks)
        assert (h == 16).all(), chunks


def test_threshold_whose_terms_cancel():
    """An input p and then -u * p leave a state of about 0: how close it is to the threshold S has
    to be judged beside p."""
    u = torch.linspace(1.5, 2.5, 40)
    a = torch.zeros(1, 400, 40)
    p = torch.linspace(0.3, 0.4, 40)
    a[0, 201], a[0, 202] = p, -u * p
    whole, divided = torch.empty_like(a), torch.empty_like(a)
    cpu.scan_forward(a, u, None, whole, nonlinearity="hardtanh", chunks=1)
    cpu.scan_forward(a, u, None, divided, nonlinearity="hardtanh", chunks=3)
    assert torch.equal(divided, whole)
