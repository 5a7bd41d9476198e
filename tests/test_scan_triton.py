"""The Triton scan against the reference: on a GPU if there is one, else in Triton's interpreter or
on the emulator."""

import emulator
import pytest
import torch
from fastindrnn.kernels.gpu import model
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, cases, check_scan, gradients_by_formula, inputs
from tolerance import assert_close_to_reference

from fastindrnn.kernels import gpu, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu" and not emulator.is_used()

# States that outgrow their dtype are part of these tests; numpy, the interpreter's engine, warns.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) enc.*:RuntimeWarning"
    ),
    pytest.mark.usefixtures("poisoned_memory"),
]


def on_device(x):
    return x.to(DEVICE) if torch.is_tensor(x) else x


def forward(a, u, h0, h, **options):
    options = {name: on_device(x) for name, x in options.items()}
    written = on_device(h)
    h_n = gpu.scan_forward(on_device(a), on_device(u), on_device(h0), written, **options)
    h.copy_(written)
    return h_n.to(a.device)


def backward(*tensors, **options):
    options = {name: on_device(x) for name, x in options.items()}
    gradients = gpu.scan_backward(*map(on_device, tensors), **options)
    return [x.to(tensors[0].device) for x in gradients]


cuts = st.fixed_dictionaries(
    {"chunks": st.sampled_from([1, 2, 3, 8]), "block_n": st.sampled_from([4, 8])}
)
# In registers, groups have any number of rows; in a ring a power of two.
groups = st.sampled_from([(2, 1), (3, 1), (2, 2), (4, 3), (16, 2)])


@emulator.examples(70)
@given(cases(T=24, N=11), cuts, groups)
def test_against_reference(case, cut, group):
    cut = cut | {"rows": group[0], "stages": group[1]}
    if case.nonlinearity == "tanh":
        cut = cut | {"chunks": 1}
    check_scan(case, forward, backward, **cut)


@pytest.mark.parametrize(
    ("nonlinearity", "ring"),
    [*((name, False) for name in reference.ACTIVATIONS), ("relu", True), ("tanh", True)],
)
def test_as_the_launch_plans_it(nonlinearity, ring):
    """With the launch's own groups of rows, blocks and chunks: several of each but for tanh."""
    dtype = torch.float32 if ring else torch.float16
    N = 7 if ring else 35
    case = Case(
        1, 280, N, dtype=dtype, nonlinearity=nonlinearity, form="lengths", grad_clip=0.5, seed=3
    )
    check_scan(case, forward, backward)
    device = model.Device("mma", 1, 32, 0)
    for streams in (1, 2):
        cut = model.plan(device, 1, 280, N, dtype.itemsize, streams, vector=dtype.itemsize)
        assert cut.chunks > 1
        assert (cut.stages > 1) == ring


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_in_place_and_strided_and_same_bits_on_each_run(reverse, chunks, stages):
    """Into its own input, between other channels, under autocast's mix of dtypes. In blocks as wide
    as a warp: in narrower ones lanes read what others of them overwrite, which counts as a race."""
    case = Case(2, 17, 35, reverse=reverse, form="lengths", has_resets=True, dtype=torch.bfloat16)
    (a, u, h0, options), _ = inputs(case)
    u, h0 = u.float(), h0.float()
    cut = {"chunks": chunks, "rows": 4, "stages": stages, "block_n": 32}
    expected = torch.full_like(a, torch.nan)
    h_n = forward(a, u, h0, expected, **options, **cut)
    wide = on_device(torch.full((2, 18, 40), 7.0, dtype=a.dtype))
    inner = wide[:, 1:, 3:38]
    inner.copy_(a)
    options = {name: on_device(x) for name, x in options.items()}
    again = gpu.scan_forward(inner, on_device(u), on_device(h0), inner, **options, **cut)
    assert torch.equal(inner.cpu(), expected)
    assert torch.equal(again.cpu(), h_n)
    inner.fill_(7.0)
    assert (wide == 7.0).all(), "wrote outside of h"


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_stays_until_a_reset(nonlinearity, chunks):
    """Also where u is 0 or the state has faded to 0 since, and across chunks that are folded."""
    a = torch.zeros(2, 40, 7)
    a[:, 3] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -1.0, 1e9, -1e25])
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[1, 21] = True
    h = torch.zeros_like(a)
    options = {"nonlinearity": nonlinearity, "resets": resets}
    h_n = forward(a, u, None, h, **options, chunks=chunks, rows=4)
    assert h[0, 3:].isnan().all()
    assert h[1, 3:21].isnan().all()
    assert (h[1, 21:] == 0).all()
    assert h_n[0].isnan().all()
    assert (h_n[1] == 0).all()


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_message_stays_until_a_bound_stops_it(grad_clip, chunks):
    h = torch.ones(1, 40, 5)
    h[0, 9] = 0.0
    grad_h = torch.zeros(1, 40, 5)
    grad_h[0, 37] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 1.0, 1e25])
    options = {"grad_clip": grad_clip, "chunks": chunks, "rows": 4}
    grad_a, _, grad_h0, _ = backward(grad_h, None, h, u, None, **options)
    assert grad_a[0, 10:38].isnan().all()
    assert (grad_a[0, :10] == 0).all()
    assert (grad_a[0, 38:] == 0).all()
    assert (grad_h0 == 0).all()


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6"])
def test_bounds_hold_infinities(nonlinearity):
    """A fold forms no inf - inf and no 0 * inf out of what a bound has already cut off."""
    a = torch.zeros(3, 40, 6)
    a[0, 3], a[0, 17] = -torch.inf, -torch.inf
    if nonlinearity != "relu":
        a[1, 3], a[2, 3], a[2, 4] = torch.inf, -torch.inf, torch.inf
    u = torch.tensor([0.0, 1e-9, -0.5, 1.0, 1e25, -1e25])
    if nonlinearity == "relu" and INTERPRETED:
        a, u = a[..., :4].contiguous(), u[:4]  # numpy does not fuse: u * largest overflows first
    h = torch.zeros_like(a)
    forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u, nonlinearity=nonlinearity)[0])


@pytest.mark.parametrize("u", [-0.5, -1.0, -1.5])
def test_an_infinite_input_ends_at_the_bound(u):
    """As the first step of a chunk, the infinity meets the upper end of all states, times u: where
    that is not infinite itself, no NaN comes of it, and 0 follows."""
    a = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(3))
    a[0, 16, 1], a[0, 24, 2] = torch.inf, torch.inf
    h, u = torch.zeros_like(a), torch.full((3,), u)
    forward(a, u, None, h, chunks=5, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u)[0])
    assert h.isfinite().sum() == h.numel() - 2


def test_zero_times_an_overflowed_product_is_zero():
    """A run of steps multiplies its start by u^length, here beyond the dtype; 0 stays 0."""
    a, u, h = torch.zeros(1, 40, 2), torch.tensor([1e9, -1e9]), torch.empty(1, 40, 2)
    for nonlinearity in ("relu", "identity"):
        forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5, rows=4)
        assert (h == 0).all()


def test_odd_runs_of_a_negative_u_swap_their_ends():
    """The map of an odd number of steps with u < 0 falls: the image of the lower end is above."""
    a, u, h = torch.ones(1, 24, 2), torch.tensor([-0.5, -0.9]), torch.empty(1, 24, 2)
    forward(a, u, None, h, chunks=8, rows=3)
    torch.testing.assert_close(h, reference.scan(a, u)[0])


@pytest.mark.parametrize("chunks", [1, 4])
def test_gradient_of_the_bias_sums_what_is_not_yet_rounded(chunks):
    """The kernel sums grad_a as it is computed; summed from memory, its rounding would add up."""
    grad_h = torch.ones(1, 129, 3, dtype=torch.bfloat16)
    grad_h[0, 0] = -128.0
    h, u = torch.ones_like(grad_h), torch.full((3,), 2.0**-9, dtype=torch.bfloat16)
    *_, grad_b = backward(grad_h, None, h, u, None, chunks=chunks, rows=4)
    expected = gradients_by_formula(
        grad_h.double(), None, h.double(), u.double(), None, nonlinearity="relu", reverse=False
    )
    assert grad_b.dtype == torch.bfloat16
    torch.testing.assert_close(grad_b.double(), expected[3], rtol=4e-3, atol=0)


GROWTH = {"relu": (1.0, -3.0), "hardtanh": (0.05, 0.0), "relu6": (1.0, -3.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonlinearity", list(GROWTH))
def test_runs_that_grow(nonlinearity, dtype):
    """u**steps of a chunk overflows, while the bounds, or inputs below 0, keep the state small."""
    scale, shift = GROWTH[nonlinearity]
    T, most = (270, 3.0) if dtype == torch.float32 else (1260, 8.0)
    a = scale * torch.randn(1, T, 16, dtype=dtype) + shift
    u = torch.linspace(0.9 * most, most, 16, dtype=dtype)
    u[::3] *= -1
    h, h0 = torch.empty_like(a), 3 * torch.randn(1, 16, dtype=dtype)
    options = {"nonlinearity": nonlinearity}
    # Of three chunks the second one's map is applied: the first is a constant.
    h_n = forward(a, u, h0, h, **options, chunks=3, rows=8, block_n=16)
    expected = reference.scan(a.double(), u.double(), h0.double(), **options)
    loop = reference.scan(a, u, h0, **options)
    for what, *three in zip(("h", "h_n"), (h, h_n), expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)


def test_escape_to_infinity_is_not_stopped_by_a_chunk():
    """u > 1 without an upper bound: the state passes the largest number, where it does in steps."""
    a = torch.full((1, 240, 3), 0.1)
    u, h = torch.tensor([1.5, 2.0, 1.9]), torch.empty(1, 240, 3)
    h_n = forward(a, u, None, h, chunks=2, rows=8)
    expected, expected_n = reference.scan(a, u)
    assert torch.equal(h.isinf(), expected.isinf())
    assert h.isinf().any()
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(h_n, expected_n)


@pytest.mark.parametrize("grad_clip", [None, 0.5])
def test_messages_that_grow(grad_clip):
    """The backward's runs grow too; bounds of h stop gradients, else a clip bounds them."""
    (B, T, N), u = (1, 360, 12), torch.linspace(2.5, 3.0, 12)
    u[::4] *= -1
    h = torch.randn(B, T, N).clamp(min=0 if grad_clip is None else 0.1)
    grad_h, grad_h_n = 0.05 * torch.randn(B, T, N), torch.randn(B, N)
    arguments = (grad_h, grad_h_n, h, u, None)
    clip = {"grad_clip": grad_clip}
    actual = backward(*arguments, **clip, chunks=3, rows=8, block_n=16)
    options = {"nonlinearity": "relu", "reverse": False, **clip}
    expected = gradients_by_formula(*(x if x is None else x.double() for x in arguments), **options)
    loop = gradients_by_formula(*arguments, **options)
    for what, *three in zip(("a", "u", "h0", "b"), actual, expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)


@emulator.examples(12)
@given(
    cases(T=60, N=6, B=1, form="padded", grad_clip=None).filter(
        lambda case: case.nonlinearity != "tanh" and case.dtype.itemsize > 2
    ),
    st.sampled_from([2, 3]),
    st.floats(1.0, 6.0),
)
def test_chunks_join_whatever_u(case, chunks, most):
    """A step multiplies errors by u: so each h is compared with one step from the h before it."""
    (a, u, h0, options), _ = inputs(case)
    u = u * most
    whole, h = torch.empty_like(a), torch.empty_like(a)
    forward(a, u, h0, whole, **options, chunks=1, rows=2, block_n=8)
    forward(a, u, h0, h, **options, chunks=chunks, rows=2, block_n=8)
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


INFINITIES = [torch.inf, -torch.inf, torch.nan]


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, 2, 5])
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
    h_n = forward(a, u, h0, h, **options)
    torch.testing.assert_close(h, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h_n, expected_n, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [2, 5])
def test_an_infinite_state_stays_infinite_in_runs_that_grow(chunks):
    a = torch.zeros(1, 200, 4)
    a[0, 7], a[0, 8, 1] = torch.inf, -torch.inf
    u, h = torch.tensor([2.5, 2.5, 3.0, -3.0]), torch.empty(1, 200, 4)
    forward(a, u, None, h, chunks=chunks, rows=4)
    torch.testing.assert_close(h, reference.scan(a, u)[0], equal_nan=True)


def test_clip_in_float64_is_not_rounded_to_float32():
    check_scan(Case(2, 12, 5, dtype=torch.float64, grad_clip=0.3), forward, backward, rows=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_accurate_at_every_size(dtype):
    z = torch.logspace(-30, 2, 400, dtype=torch.float64).to(dtype)
    z = torch.cat([z, -z, torch.tensor([0.0, torch.inf, -torch.inf, 0.6], dtype=dtype)])
    a = z.reshape(1, 1, -1)
    h = torch.empty_like(a)
    forward(a, torch.zeros(len(z), dtype=dtype), None, h, nonlinearity="tanh", rows=2, block_n=128)
    expected = torch.tanh(z.double())
    error = ((h.flatten().double() - expected).abs() / expected.abs().clamp(min=1e-300)).max()
    assert error < 6 * torch.finfo(dtype).eps


def test_tanh_cannot_be_cut_in_time():
    a = torch.zeros(1, 8, 1)
    with pytest.raises(ValueError, match="chunks=2"):
        forward(a, torch.ones(1), None, a, nonlinearity="tanh", chunks=2)


def test_empty():
    for B, T, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        check_scan(Case(B, T, N), forward, backward, chunks=2, rows=2)


H200 = model.Device("wgmma", 132, 32, 0)
MI300X = model.Device("mfma", 304, 64, 0)
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_launch_from_8000_channels_on(dtype, streams):
    """One pass over memory, in a ring of asynchronous copies."""
    for sizes in ((32, 1024, 512), (64, 1024, 1024), (16, 784, 512), (512, 1000, 2048)):
        cut = model.plan(H200, *sizes, dtype.itemsize, streams, vector=16)
        assert cut.chunks == 1
        assert cut.stages > 1


def test_long_sequences_alone_are_cut():
    assert 32 <= model.plan(H200, 1, 100_000, 256, 2, 1, vector=16).chunks <= 256
    assert model.plan(H200, 1, 50, 256, 2, 1, vector=16).chunks == 1


@given(
    st.sampled_from([H200, MI300X]),
    st.integers(1, 5000),
    st.integers(1, 2048),
    st.integers(1, 4096),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 4, 16]),
)
def test_plan_has_no_cliffs(device, B, T, N, itemsize, streams, vector):
    """Half of the sequences make of a chunk two at most, and every plan can be launched."""
    vector = max(vector, itemsize)
    cut = model.plan(device, B, T, N, itemsize, streams, vector)
    half = model.plan(device, B // 2 or 1, T, N, itemsize, streams, vector)
    longer = model.plan(device, B, 2 * T, N, itemsize, streams, vector)
    assert cut.chunks <= half.chunks <= 2 * cut.chunks
    assert cut.chunks <= longer.chunks or cut.stages < longer.stages
    assert cut.chunks * cut.rows <= max(T, cut.rows)
    assert cut.rows <= 32
    assert cut.block_n % device.lanes == 0
    assert (cut.block_n - N) * 4 <= N or cut.block_n <= 2 * device.lanes
    ring = (cut.stages - 1) * cut.rows * streams * cut.block_n * itemsize
    assert ring <= model.RING
    assert cut.stages == 1 or (device is H200 and vector >= 4 and cut.rows.bit_count() == 1)


def test_a_device_half_full_is_not_cut_in_four():
    """48.5 % of the bytes that should be in flight once became four chunks."""
    goal = H200.multiprocessors * model.GOAL
    for itemsize in (2, 4):
        for B in range(1, 300):
            cut = model.plan(H200, B, 1024, 64, itemsize, 1, vector=16)
            in_flight = B * 64 * itemsize * cut.rows * max(cut.stages - 1, 1)
            assert cut.chunks == 1 or 3 * in_flight < 2 * goal
            assert cut.chunks <= 2 or 3 * in_flight < goal


@pytest.mark.parametrize("chunks", [1, 2])
def test_one_channel(chunks):
    """Compiled, an N of 1 is a plain number, which the emulator shows and the interpreter not."""
    check_scan(Case(2, 24, 1, grad_clip=0.5), forward, backward, chunks=chunks, rows=4)


def test_a_state_below_the_threshold_of_a_run_that_grows_fades():
    """1.2 becomes 3 * 1.2 - 3 = 0.6 and then 0, though 3**96 * 1.2 is infinite."""
    a = torch.full((1, 288, 4), -3.0)
    a[0, 95] = 1.2
    u, h = torch.full((4,), 3.0), torch.empty_like(a)
    forward(a, u, None, h, chunks=3, rows=8)
    assert torch.equal(h, reference.scan(a, u)[0])
