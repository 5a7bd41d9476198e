"""How far a result may be from the float64 reference, in one place and as strict in CI as
anywhere."""

import torch

# Of the largest value of the reference: a floor for what rounding alone explains.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_close_to_reference(actual, expected, loop, dtype=None, what="result", magnitude=0.0):
    """`actual` is at most 4 times as far from `expected` (float64) as `loop`, plain PyTorch at the
    same dtype.

    Shapes must agree; NaN must stand in the same places; below the floor of its dtype, an error
    counts as rounding. Of a sum, `magnitude` is the sum of its terms' sizes: where they cancel, the
    error is of their size, 4 units in the last place of the accumulator.
    """
    dtype = dtype or actual.dtype
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    if actual.numel() == 0:
        return
    actual, expected, loop = actual.double(), expected.double(), loop.double()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN in other places"
    error = (actual - expected).nan_to_num(0).abs().max().item()
    allowed = (loop - expected).nan_to_num(0).abs().max().item() * 4
    floor = FLOOR[dtype] * expected.nan_to_num(0).abs().max().item()
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    floor = max(floor, 4 * torch.finfo(accumulator).eps * magnitude)
    assert error <= max(allowed, floor), (
        f"{what}: off by {error:.2e}; the loop in {dtype} is off by {allowed / 4:.2e}, "
        f"floor {floor:.2e}"
    )
