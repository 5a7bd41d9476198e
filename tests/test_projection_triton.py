"""The projection fused with the recurrence, in Triton, against the reference."""

import emulator
import pytest
import torch
from fastindrnn.kernels.gpu import model
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import (
    by_reference,
    check_backward,
    check_forward,
    choices,
    double,
    fused,
    layers,
    run_forward,
)
from scan_cases import Case
from tolerance import assert_close_to_reference
from triton_cases import INTERPRETED, MAY_OVERFLOW

from fastindrnn.kernels import gpu, reference

pytestmark = [
    pytest.mark.triton,
    MAY_OVERFLOW,
    pytest.mark.usefixtures("poisoned_memory", "products_of_bfloat16"),
]


@emulator.examples(60)
@given(
    layers, st.sampled_from([1, 3, 16, 20, 33, 70]), st.sampled_from([1, 2]), choices, st.booleans()
)
def test_layer_against_reference(case, K, directions, choice, has_bias):
    check_forward(case, K, directions, choice, has_bias)


@emulator.examples(60)
@given(layers, st.sampled_from([1, 3, 16, 20, 33, 70]), choices)
def test_backward_of_a_stack_against_the_formula(case, K, choice):
    check_backward(case, K, choice._replace(slices=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chained", [False, True])
def test_half_precision(dtype, chained):
    """The state between tiles, and the pre-activation, are not rounded."""
    case = Case(2, 45, 35, dtype=dtype, form="lengths", has_resets=True, grad_clip=0.5)
    for choice in (fused(chained, block_n=64), fused(chained, block_n=64, block_k=64, ahead=True)):
        check_forward(case, 24, 2, choice)
        check_backward(case, 24, choice)


@pytest.mark.parametrize("family", list(model.FAMILIES))
@pytest.mark.parametrize("backward", [False, True])
def test_with_the_tiles_of_each_family(family, backward):
    """The model's own tiles, ragged in every direction."""
    for K, aligned in ((40, True), (200, True), (7, False)):
        tile = model.pick_tile(family, 70, K, 4, backward, aligned)
        case = Case(1, tile.block_t + 9, 70, form="lengths", seed=K)
        choice = model.Choice(tile, chained=False, slices=1)
        if backward:
            check_backward(case, K, choice)
        else:
            check_forward(case, K, 1, choice)


@pytest.mark.parametrize("K", [136, 192, 320, 384, 512])
@pytest.mark.parametrize("backward", [False, True])
def test_weights_that_stay(K, backward):
    """Blocks of every size that Hopper's tiles have, ragged in time and channels, and in K."""
    tile = model.pick_tile("wgmma", 70, K, 2, backward, True)
    assert tile.ahead
    case = Case(2, tile.block_t + 5, 70, torch.float16, form="lengths", reverse=True, seed=K)
    choice = model.Choice(tile, chained=False, slices=1)
    if backward:
        check_backward(case, K - 8, choice)
    else:
        check_forward(case, K - 8, 2, choice)


def test_same_bits_on_every_run():
    choice = fused(chained=True, block_n=64)
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
