"""The fused kernels with NaN, infinities, an h0 out of bounds and maps that overflow."""

import itertools

import pytest
import torch
from layer_cases import by_reference, double, fused, run_forward, split
from scan_cases import gradients_by_formula, sizes_of_sums
from tolerance import assert_close_to_reference
from triton_cases import INFINITIES, MAY_OVERFLOW, on_device

from fastindrnn.kernels import gpu

pytestmark = [pytest.mark.triton, MAY_OVERFLOW, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("chained", [False, True])
def test_nan_stays_until_a_reset(lanes, chained):
    choice = fused(lanes=lanes, adjacent=2 if lanes == 4 else 1, chained=chained)
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
    choice = fused()
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
def test_segments_that_grow(nonlinearity, chained):
    """u**(steps of a lane) overflows: h0 outside of the bounds, u of both signs, small inputs."""
    choice = fused(block_t=32, lanes=2, adjacent=4, chained=chained)
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
    choice = fused(block_t=32, lanes=2, adjacent=4, chained=chained)
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
        ("grad_a", "grad_u", "grad_h0", "grad_bias"),
        actual,
        formula(torch.float64),
        formula(torch.float32),
        strict=True,
    )
    for what, *three in results:
        magnitude = magnitudes.get(what, 0.0)
        assert_close_to_reference(three[0].cpu(), *three[1:], what=what, magnitude=magnitude)


def every_pair(*options):
    """All combinations, of which those of every other one are slow: the rest has every pair of
    values of two options."""
    found = []
    for combination in itertools.product(*(enumerate(values) for values in options)):
        positions, values = zip(*combination, strict=True)
        marks = [pytest.mark.slow] if sum(positions) % 2 else []
        found.append(pytest.param(*values, marks=marks))
    return found


@pytest.mark.parametrize(
    ("nonlinearity", "lanes", "chained"),
    every_pair(["relu", "identity", "hardtanh", "relu6"], [4, 1], [False, True]),
)
def test_infinities_as_step_by_step(nonlinearity, lanes, chained):
    """One at a time and one after the other: within a lane, within a tile, across tiles, in h0."""
    choice = fused(lanes=lanes, adjacent=2 if lanes == 4 else 1, chained=chained)
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
    """The terms d_{t+1} * h_t where h_t is infinite or NaN: NaN where d_{t+1} is 0 because h_{t+1}
    is at a bound, as in the scan; none at the last time and before a reset."""
    choice = fused(chained)
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
        by_scan = gpu.projected_backward(*map(on_device, tensors), choice=split(), **moved)
        for one, two, three in zip(actual, expected, by_scan, strict=True):
            torch.testing.assert_close(one.cpu(), two, equal_nan=True, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(three.cpu(), two, equal_nan=True, rtol=1e-4, atol=1e-4)
