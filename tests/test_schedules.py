"""Chained tiles, whose programs wait for each other, with CTAs and warps in many orders."""

import emulator
import pytest
import torch
from fastindrnn.kernels.gpu import model
from layer_cases import by_reference, double, layer_inputs, run_forward
from scan_cases import Case, gradients_by_formula, inputs, sizes_of_sums
from tolerance import assert_close_to_reference

from fastindrnn.kernels import gpu, reference

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not emulator.is_used(), reason="needs --emulator"),
    pytest.mark.usefixtures("poisoned_memory"),
]
K, SCHEDULES = 16, 40


def forward(case, choice):
    """A function that launches the kernel; what it has to return, in float64; what plain PyTorch
    returns in its dtype; and {}, because no result is a sum whose terms cancel."""
    x, weight, bias, u, h0, options = layer_inputs(case, K, 1)
    expected = by_reference(*map(double, (x, weight, bias, u, h0)), 1, options)
    loop = by_reference(x, weight, bias, u, h0, 1, options)
    return lambda: run_forward(x, weight, bias, u, h0, choice, **options), expected, loop, {}


def backward(case, choice):
    """As `forward`, but last {position of a result that is a sum: the size of its terms}."""
    (a, u, h0, options), (_, grad_h_n) = inputs(case)
    grad_next, weight, *_ = layer_inputs(case, K, 1)
    weight = weight.t().contiguous()
    h, _ = reference.scan(a, u, h0, **options)
    arguments = grad_next, weight, grad_h_n, h, u, h0

    def by_formula(dtype):
        x, w, *rest = (y.to(dtype) for y in arguments)
        return gradients_by_formula(x @ w, *rest, **options, grad_clip=case.grad_clip)

    def run():
        clip = {"grad_clip": case.grad_clip}
        return gpu.projected_backward(*arguments, choice=choice, **options, **clip)

    expected = by_formula(torch.float64)
    magnitudes = sizes_of_sums(expected[0], h, h0)
    sums = {1: magnitudes["grad_u"], 3: magnitudes["grad_bias"]}
    return run, expected, by_formula(case.dtype), sums


def is_right(actual, expected, loop, magnitudes):
    try:
        for i, three in enumerate(zip(actual, expected, loop, strict=True)):
            assert_close_to_reference(*three, magnitude=magnitudes.get(i, 0.0))
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("N", [64, 128])
@pytest.mark.parametrize("prepare", [forward, backward])
def test_chained_tiles_in_many_schedules(prepare, N):
    """With 2 to 6 tiles of a chain under way at a time, in the model's own tiles."""
    case = Case(1, 768, N, dtype=torch.bfloat16, grad_clip=3.0)
    tile = model.pick_tile(emulator.family(), N, K, 2, prepare is backward, aligned=True)
    run, *wanted = prepare(case, model.Choice(tile, chained=True, slices=1))
    wrong, races = [], {}
    for seed in range(SCHEDULES):
        with emulator.device(seed, may_race=True, resident=2 + seed % 5) as launches:
            if not is_right(run(), *wanted):
                wrong.append(seed)
        for _, found in launches:
            if emulator.races_of(found):
                races[seed] = emulator.races_of(found)
    assert (len(wrong), len(races)) == (0, 0), (
        f"of {SCHEDULES} schedules {len(wrong)} wrong {wrong}, {len(races)} with a race, "
        f"such as {next(iter(races.items()), None)}"
    )
