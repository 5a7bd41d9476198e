"""The projection fused with the recurrence: on a GPU if there is one, else in Triton's interpreter
or on the emulator."""

import math

import emulator
import pytest
import torch
import triton.language as tl
from fastindrnn.kernels.gpu import model
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, cases, gradients_by_formula, inputs, sizes_of_sums
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
    pytest.mark.usefixtures("poisoned_memory", "products_of_bfloat16"),
]


@pytest.fixture
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers, and multiplies these in its `dot`."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot(self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def on_device(x):
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


# (lanes, run) of every kind of accumulator, small tiles, and tiles with a K of one block. With
# `ahead`, a block of K is at least a piece of 128 bytes.
tiles = st.builds(
    lambda block_n, block_t, block_k, layout, ahead: model.Tile(
        block_n, block_t, 2 * block_k if ahead else block_k, 4, 1 if ahead else 2, *layout, ahead
    ),
    st.just(16 if INTERPRETED else 64),
    st.sampled_from([16, 32]),
    st.sampled_from([16, 32]),
    st.sampled_from([(4, 2), (2, 4), (1, 1)]),
    st.booleans(),
)
choices = st.one_of(
    st.builds(model.Choice, tiles, st.booleans(), st.just(1)),
    st.builds(model.Choice, st.none(), st.just(False), st.sampled_from([1, 2])),
)
layers = cases(T=40, N=20, dtype=torch.float32).filter(lambda case: case.nonlinearity != "tanh")


def layer_inputs(case, K, halves):
    """x, weight, bias, u, h0 and options of a layer; the recurrence's are those of `case`."""
    (a, u, h0, options), _ = inputs(case)
    generator = torch.Generator().manual_seed(case.seed + 1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(case.dtype)

    x = normal(*a.shape[:-1], K)
    if case.time_first and case.form != "packed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    if case.form == "lengths":
        x[torch.arange(case.T) >= options["lengths"][:, None]] = torch.nan
    weight = normal(halves * case.N, K) / math.sqrt(K)
    bias = normal(halves * case.N)
    if halves == 2:
        u = torch.cat([u, u.roll(1).neg()])
        h0 = None if h0 is None else torch.cat([h0, h0.flip(0)], 1)
    return x, weight, bias, u, h0, options


def by_reference(x, weight, bias, u, h0, halves, options):
    """Both directions by the definition, one after the other."""
    a = torch.nn.functional.linear(x, weight, bias)
    results = []
    for half in range(halves):
        channels = slice(half * len(u) // halves, (half + 1) * len(u) // halves)
        initial = None if h0 is None else h0[:, channels]
        taken = options | {"reverse": options["reverse"] != bool(half)}
        results.append(reference.scan(a[..., channels], u[channels], initial, **taken))
    return [torch.cat(parts, -1) for parts in zip(*results, strict=True)]


def run_forward(x, weight, bias, u, h0, choice, **options):
    x, weight, bias, u, h0 = map(on_device, (x, weight, bias, u, h0))
    options = {name: on_device(value) for name, value in options.items()}
    shape = *x.shape[:-1], len(u)
    h = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
    if x.dim() == 3 and x.stride(0) < x.stride(1):
        h = h.transpose(0, 1).contiguous().transpose(0, 1)
    h_n = gpu.indrnn_forward(x, weight, bias, u, h0, h, choice=choice, **options)
    return h.cpu(), h_n.cpu()


def double(x):
    return x.double() if isinstance(x, torch.Tensor) else x


def possible(choice, case):
    """Packed sequences are neither chained nor sliced, nor is an empty time chained."""
    if case.form == "packed" or case.time_first:
        choice = choice._replace(slices=1)
    return choice._replace(chained=choice.chained and case.form != "packed" and case.T > 0)


def check_forward(case, K, halves, choice, has_bias=True):
    x, weight, bias, u, h0, options = layer_inputs(case, K, halves)
    bias = bias if has_bias else None
    choice = possible(choice, case)
    actual = run_forward(x, weight, bias, u, h0, choice, bidirectional=halves == 2, **options)
    clean = torch.where(x.isnan(), 0, x)
    expected = by_reference(*map(double, (clean, weight, bias, u, h0)), halves, options)
    loop = by_reference(clean, weight, bias, u, h0, halves, options)
    for what, *three in zip(("h", "h_n"), actual, expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)


@emulator.examples(60)
@given(
    layers, st.sampled_from([1, 3, 16, 20, 33, 70]), st.sampled_from([1, 2]), choices, st.booleans()
)
def test_layer_against_reference(case, K, halves, choice, has_bias):
    check_forward(case, K, halves, choice, has_bias)


def check_backward(case, K, choice):
    (_, u, h0, options), (_, grad_h_n) = inputs(case)
    x, weight, *_ = layer_inputs(case, K, 1)
    weight = weight.t().contiguous()
    a = torch.where(x.isnan(), 0, x)[..., :1] * torch.linspace(-2, 2, case.N).to(case.dtype)
    h, _ = reference.scan(a, u, h0, **options)
    choice = possible(choice, case)
    tensors = map(on_device, (x, weight, grad_h_n, h, u, h0))
    moved = {name: on_device(value) for name, value in options.items()}
    clip = {"grad_clip": case.grad_clip}
    actual = gpu.projected_backward(*tensors, choice=choice, **clip, **moved)
    clean = torch.where(x.isnan(), 0, x)

    def formula(dtype):
        grad_h = clean.to(dtype) @ weight.to(dtype)
        rest = (None if y is None else y.to(dtype) for y in (grad_h_n, h, u, h0))
        return gradients_by_formula(grad_h, *rest, **options, **clip)

    places = {x.untyped_storage().data_ptr() for x in actual if x.numel()}
    assert len(places) == sum(x.numel() > 0 for x in actual), "results share memory"
    names = ("grad_a", "grad_u", "grad_h0", "grad_b")
    results = zip(names, actual, formula(torch.float64), formula(case.dtype), strict=True)
    magnitudes = sizes_of_sums(actual[0].cpu(), h, h0)
    for what, *three in results:
        magnitude = magnitudes.get(what, 0.0)
        assert_close_to_reference(three[0].cpu(), *three[1:], what=what, magnitude=magnitude)


@emulator.examples(60)
@given(layers, st.sampled_from([1, 3, 16, 20, 33, 70]), choices)
def test_backward_of_a_stack_against_the_formula(case, K, choice):
    check_backward(case, K, choice._replace(slices=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chained", [False, True])
def test_half_precision(dtype, chained):
    """The state between tiles, and the pre-activation, are not rounded."""
    case = Case(2, 45, 35, dtype=dtype, form="lengths", has_resets=True, grad_clip=0.5)
    for cut in (model.Tile(64, 16, 16, 4, 2, 4, 2), model.Tile(64, 16, 64, 4, 1, 4, 2, True)):
        choice = model.Choice(cut, chained, 1)
        check_forward(case, 24, 2, choice)
        check_backward(case, 24, choice)


@pytest.mark.parametrize("family", list(model.FAMILIES))
@pytest.mark.parametrize("backward", [False, True])
def test_with_the_tiles_of_each_family(family, backward):
    """The model's own tiles, ragged in every direction."""
    for K, aligned in ((40, True), (200, True), (7, False)):
        cut = model.tile(family, 70, K, 4, backward, aligned)
        case = Case(1, cut.block_t + 9, 70, form="lengths", seed=K)
        choice = model.Choice(cut, False, 1)
        if backward:
            check_backward(case, K, choice)
        else:
            check_forward(case, K, 1, choice)


@pytest.mark.parametrize("K", [136, 192, 320, 384, 512])
@pytest.mark.parametrize("backward", [False, True])
def test_weights_that_stay(K, backward):
    """Blocks of every size that Hopper's tiles have, ragged in time and channels, and in K."""
    cut = model.tile("wgmma", 70, K, 2, backward, True)
    assert cut.ahead
    case = Case(2, cut.block_t + 5, 70, torch.float16, form="lengths", reverse=True, seed=K)
    choice = model.Choice(cut, False, 1)
    if backward:
        check_backward(case, K - 8, choice)
    else:
        check_forward(case, K - 8, 2, choice)


def test_weights_stay_where_they_fit():
    for family in model.FAMILIES:
        for backward in (False, True):
            for K in (256, 512):
                streams = model.tile(family, 512, K, 2, backward, True, chained=True)
                assert not streams.ahead, "each program of a chain takes one tile"
                stays = model.tile(family, 512, K, 2, backward, True)
                rates = model.FAMILIES[family]
                widest = rates.resident_backward if backward else rates.resident
                assert stays.ahead == (widest >= 2 * K)
            assert not model.tile(family, 512, 520, 2, backward, True).ahead
            assert not model.tile(family, 512, 200, 2, backward, False).ahead, "loads of one number"
    h200 = model.Device("wgmma", 132, 32, 50 << 20)
    streamed = model.tile("wgmma", 512, 512, 2, False, True, chained=True)
    stays = model.tile("wgmma", 512, 512, 2, False, True)
    for B in (8, 128):
        size = h200, B, 1024, 512, 512, 2, False
        assert model.fused_time(*size, stays, False) < model.fused_time(*size, streamed, False)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("chained", [False, True])
def test_nan_stays_until_a_reset(lanes, chained):
    choice = model.Choice(model.Tile(16, 16, 16, 4, 2, lanes, 2 if lanes == 4 else 1), chained, 1)
    x = torch.zeros(2, 40, 1)
    x[:, 3] = torch.nan
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[1, 21] = True
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -1.0, 1e9, -1e25])
    h, h_n = run_forward(x, torch.ones(7, 1), None, u, None, choice, resets=resets)
    assert h[0, 3:].isnan().all()
    assert h[1, 3:21].isnan().all()
    assert (h[1, 21:] == 0).all()
    assert h_n[0].isnan().all()
    assert (h_n[1] == 0).all()


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6", "identity"])
def test_given_state_outside_of_the_bounds(nonlinearity):
    """The recurrence never leaves its bounds, but h0 may lie beyond them."""
    choice = model.Choice(model.Tile(16, 16, 16, 4, 2, 4, 2), False, 1)
    x, weight = torch.randn(2, 20, 3), torch.randn(6, 3) / 4
    u, h0 = torch.tensor([0.99, -0.99, 1.0, -1.0, 0.5, -0.5]), 9 * torch.randn(2, 6)
    options = {"nonlinearity": nonlinearity, "reverse": False}
    actual = run_forward(x, weight, None, u, h0, choice, **options)
    expected = by_reference(*map(double, (x, weight, None, u, h0)), 1, options)
    loop = by_reference(x, weight, None, u, h0, 1, options)
    for three in zip(actual, expected, loop, strict=True):
        assert_close_to_reference(*three)


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6"])
@pytest.mark.parametrize("chained", [False, True])
def test_runs_that_grow(nonlinearity, chained):
    """u**(steps of a lane) overflows: h0 outside of the bounds, u of both signs, small inputs."""
    choice = model.Choice(model.Tile(16, 32, 16, 4, 2, 2, 4), chained, 1)
    x, h0 = torch.randn(2, 70, 3), 9 * torch.randn(2, 16)
    weight = torch.randn(16, 3) * (0.05 if nonlinearity == "hardtanh" else 1.0)
    bias = torch.full((16,), 0.0 if nonlinearity == "hardtanh" else -40.0)
    u = torch.linspace(100.0, 400.0, 16) * (-1.0) ** torch.arange(16)
    options = {"nonlinearity": nonlinearity, "reverse": False}
    actual = run_forward(x, weight, bias, u, h0, choice, **options)
    expected = by_reference(*map(double, (x, weight, bias, u, h0)), 1, options)
    loop = by_reference(x, weight, bias, u, h0, 1, options)
    for three in zip(actual, expected, loop, strict=True):
        assert_close_to_reference(*three)


@pytest.mark.parametrize("chained", [False, True])
def test_gradients_that_grow(chained):
    """A clip bounds gradients that grow by u at each step, some of which h stops."""
    choice = model.Choice(model.Tile(16, 32, 16, 4, 2, 2, 4), chained, 1)
    (B, T, N), u = (2, 70, 16), torch.linspace(100.0, 400.0, 16)
    u[::3] *= -1
    h, h0 = torch.randn(B, T, N).clamp(min=0), torch.randn(B, N)
    x, weight, grad_h_n = torch.randn(B, T, 3), 1e-3 * torch.randn(3, N), torch.randn(B, N)
    arguments = {"nonlinearity": "relu", "reverse": False, "grad_clip": 0.5}
    tensors = map(on_device, (x, weight, grad_h_n, h, u, h0))
    actual = gpu.projected_backward(*tensors, choice=choice, **arguments)

    def formula(dtype):
        rest = (y.to(dtype) for y in (grad_h_n, h, u, h0))
        return gradients_by_formula(x.to(dtype) @ weight.to(dtype), *rest, **arguments)

    magnitudes = sizes_of_sums(actual[0].cpu(), h, h0)
    results = zip(
        ("grad_a", "grad_u", "grad_h0", "grad_b"),
        actual,
        formula(torch.float64),
        formula(torch.float32),
        strict=True,
    )
    for what, *three in results:
        magnitude = magnitudes.get(what, 0.0)
        assert_close_to_reference(three[0].cpu(), *three[1:], what=what, magnitude=magnitude)


INFINITIES = [torch.inf, -torch.inf, torch.nan]


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("layout", [(4, 2), (1, 1)])
@pytest.mark.parametrize("chained", [False, True])
def test_infinities_as_step_by_step(nonlinearity, layout, chained):
    """One at a time and one after the other, within a lane's run, a tile, across, and in h0."""
    choice = model.Choice(model.Tile(16, 16, 16, 4, 2, *layout), chained, 1)
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -0.5, 1.0, -1.0, 1.7, -1.7])
    pairs = [(x, y) for x in INFINITIES for y in (None, *INFINITIES)]
    x = torch.randn(len(pairs) + 3, 40, 1)
    h0 = torch.randn(len(x), len(u))
    h0[-3:] = torch.tensor(INFINITIES)[:, None]
    for b, (first, second) in enumerate(pairs):
        x[b, 5] = first
        if second is not None:
            x[b, (6, 8, 9, 21)[b % 4]] = second
    weight, options = torch.ones(len(u), 1), {"nonlinearity": nonlinearity, "reverse": False}
    actual = run_forward(x, weight, None, u, h0, choice, **options)
    expected = by_reference(x, weight, None, u, h0, 1, options)
    for two in zip(actual, expected, strict=True):
        torch.testing.assert_close(*two, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("grad_clip", [None, 0.5])
def test_infinite_outputs_in_the_sum_of_the_gradient_of_u(grad_clip, chained):
    """d_{t+1} * h_t where h_t is infinite: NaN where a bound stopped d_{t+1}, as in the scan; none
    at the last step and before a reset, where no gradient arrives."""
    choice = model.Choice(model.Tile(16, 16, 16, 4, 2, 4, 2), chained, 1)
    B, T, N = 6, 21, 3
    h = torch.rand(B, T, N) + 0.5
    resets = torch.zeros(B, T, dtype=torch.bool)
    h0 = torch.ones(B, N)
    h[0, T - 1] = torch.inf
    h[1, 7], h[1, 8] = torch.inf, 0.0
    h[2, 7] = torch.inf
    h[3, 15] = torch.inf
    resets[3, 16] = True
    h0[4], resets[4, 0] = torch.inf, True
    h[5, T - 1] = torch.nan
    x, weight, u = torch.randn(B, T, 2), torch.randn(2, N), torch.tensor([0.5, -0.5, 0.9])
    options = {"nonlinearity": "relu", "reverse": False, "grad_clip": grad_clip}
    for b in range(B):
        part = slice(b, b + 1)
        kept = {**options, "resets": resets[part]}
        tensors = x[part], weight, None, h[part], u, h0[part]
        moved = {name: on_device(value) for name, value in kept.items()}
        actual = gpu.projected_backward(*map(on_device, tensors), choice=choice, **moved)
        expected = gradients_by_formula(x[part] @ weight, *tensors[2:], **kept)
        split = gpu.projected_backward(
            *map(on_device, tensors), choice=model.Choice(None, False, 1), **moved
        )
        for one, two, three in zip(actual, expected, split, strict=True):
            torch.testing.assert_close(one.cpu(), two, equal_nan=True, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(three.cpu(), two, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_each_thread_waits_for_a_word_of_its_own():
    """Threads that poll the same word may see it at different times."""
    for family in model.FAMILIES:
        lanes = 64 if family == "mfma" else 32
        for N in (16, 70, 512):
            for K in (40, 512):
                for backward in (False, True):
                    for aligned in (False, True):
                        cut = model.tile(family, N, K, 2, backward, aligned)
                        copies = model.constants_of(cut, K, lanes)["COPIES"]
                        assert copies * cut.block_n >= cut.warps * lanes


def test_same_bits_on_every_run():
    choice = model.Choice(model.Tile(64, 16, 16, 4, 2, 4, 2), True, 1)
    x, weight, u = torch.randn(3, 100, 20), torch.randn(70, 20) / 4, torch.rand(70)
    first, again = (run_forward(x, weight, None, u, None, choice) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("strategy", ["auto", "fused", "split"])
def test_strategies(strategy):
    for B, T, K, N in ((2, 9, 5, 7), (0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 0)):
        x, weight, u = torch.randn(B, T, K), torch.randn(N, K), torch.rand(N)
        h, h_n = run_forward(x, weight, None, u, None, None, strategy=strategy)
        expected, expected_n = reference.scan(x @ weight.t(), u)
        torch.testing.assert_close(h, expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(h_n, expected_n, atol=2e-3, rtol=2e-3)


def test_what_the_fused_kernel_cannot():
    x, weight, u = torch.randn(2, 9, 5), torch.randn(7, 5), torch.rand(7)
    with pytest.raises(ValueError, match="tanh is not a clamp"):
        run_forward(x, weight, None, u, None, None, strategy="fused", nonlinearity="tanh")
    with pytest.raises(ValueError, match="float64"):
        run_forward(x.double(), weight.double(), None, u, None, None, strategy="fused")
    for options in ({"nonlinearity": "tanh"}, {}):
        dtype = torch.float64 if not options else torch.float32
        run_forward(x.to(dtype), weight.to(dtype), None, u, None, None, **options)


def test_the_interpreter_alone_cannot_fuse_bfloat16():
    x, weight, u = torch.randn(2, 9, 5), torch.randn(7, 5), torch.rand(7)
    x, weight, u = (y.bfloat16() for y in (x, weight, u))
    if INTERPRETED:
        with pytest.raises(ValueError, match="bfloat16"):
            run_forward(x, weight, None, u, None, None, strategy="fused")
        return
    actual = run_forward(x, weight, None, u, None, None, strategy="fused")
    options = {"nonlinearity": "relu", "reverse": False}
    expected = by_reference(*map(double, (x, weight, None, u, None)), 1, options)
    loop = by_reference(x, weight, None, u, None, 1, options)
    for three in zip(actual, expected, loop, strict=True):
        assert_close_to_reference(*three)


def test_weights_of_more_elements_than_offsets_reach():
    """Offsets in a weight are 32 bits wide: a larger one would be read at the wrong places."""
    x, u, h = torch.randn(2, 9, 5), torch.rand(7), torch.zeros(2, 9, 7)
    for shape, strides in (((7, 5), (2**31 // 6 + 1, 1)), ((7, 5), (1, 2**29))):
        weight = torch.empty_strided(shape, strides, device="meta")
        with pytest.raises(ValueError, match="offsets"):
            gpu.indrnn_forward(x, weight, None, u, None, h, strategy="fused")
        with pytest.raises(ValueError, match="offsets"):
            gpu.projected_backward(x, weight.t(), None, h, u, None, strategy="fused")


def test_model_fuses_narrow_products_and_splits_wide_ones():
    h200 = model.Device("wgmma", 132, 32, 50 << 20)

    def choose(B, T, K, N, strategy="auto", backward=False):
        return model.choose(h200, strategy, B, T, K, N, 2, backward, True, True, B)

    narrow = choose(32, 1024, 128, 128)
    assert narrow.tile is not None
    assert narrow.chained, "32 programs do not fill 132 multiprocessors"
    assert not choose(512, 1024, 64, 128).chained
    wide = choose(512, 1024, 1024, 1024)
    assert wide.tile is None
    assert wide.slices > 1, "1 GiB does not stay in a cache of 50 MiB"
    assert choose(1, 2**20, 256, 256).tile is None, "8,192 hops of a chain"
    assert choose(64, 1024, 2048, 2048, "fused").tile is not None
    assert choose(32, 1024, 128, 128, "split").tile is None
