"""The Triton scan against the reference, in every form of its arguments."""

import emulator
import pytest
import torch
from fastindrnn.kernels.gpu import model
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, cases, check_scan, gradients_by_formula, inputs
from triton_cases import MAY_OVERFLOW, on_device, scan_backward, scan_forward

from fastindrnn.kernels import gpu, reference

pytestmark = [pytest.mark.triton, MAY_OVERFLOW, pytest.mark.usefixtures("poisoned_memory")]

plans = st.fixed_dictionaries(
    {"chunks": st.sampled_from([1, 2, 3, 8]), "block_n": st.sampled_from([4, 8])}
)
# (rows, stages). In registers, groups have any number of rows; in a ring a power of two.
groups = st.sampled_from([(2, 1), (3, 1), (2, 2), (4, 3), (16, 2)])


@emulator.examples(70)
@given(cases(T=24, N=11), plans, groups)
def test_against_reference(case, plan, group):
    plan = plan | {"rows": group[0], "stages": group[1]}
    if case.nonlinearity == "tanh":
        plan = plan | {"chunks": 1}
    check_scan(case, scan_forward, scan_backward, **plan)


@pytest.mark.parametrize(
    ("nonlinearity", "ring"),
    [*((name, False) for name in reference.ACTIVATIONS), ("relu", True), ("tanh", True)],
)
def test_as_the_launch_plans_it(nonlinearity, ring):
    """With the plan that the launch makes: several groups, blocks and, except for tanh, chunks."""
    dtype = torch.float32 if ring else torch.float16
    N = 7 if ring else 35
    case = Case(
        1, 280, N, dtype=dtype, nonlinearity=nonlinearity, form="lengths", grad_clip=0.5, seed=3
    )
    check_scan(case, scan_forward, scan_backward)
    device = model.Device("mma", 1, 32, 0)
    for tensors_read in (1, 2):
        plan = model.plan(device, 1, 280, N, dtype.itemsize, tensors_read, vector=dtype.itemsize)
        assert plan.chunks > 1
        assert (plan.stages > 1) == ring


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_in_place_and_strided_and_same_bits_on_each_run(reverse, chunks, stages):
    """h is a, whose rows lie between other channels, and u and h0 are float32 as under autocast.

    Blocks are as wide as a warp: in narrower ones several lanes read the same number and one
    overwrites it, which the emulator counts as a race.
    """
    case = Case(2, 17, 35, reverse=reverse, form="lengths", has_resets=True, dtype=torch.bfloat16)
    (a, u, h0, options), _ = inputs(case)
    u, h0 = u.float(), h0.float()
    plan = {"chunks": chunks, "rows": 4, "stages": stages, "block_n": 32}
    expected = torch.full_like(a, torch.nan)
    h_n = scan_forward(a, u, h0, expected, **options, **plan)
    wide = on_device(torch.full((2, 18, 40), 7.0, dtype=a.dtype))
    inner = wide[:, 1:, 3:38]
    inner.copy_(a)
    options = {name: on_device(x) for name, x in options.items()}
    again = gpu.scan_forward(inner, on_device(u), on_device(h0), inner, **options, **plan)
    assert torch.equal(inner.cpu(), expected)
    assert torch.equal(again.cpu(), h_n)
    inner.fill_(7.0)
    assert (wide == 7.0).all(), "wrote outside of h"


@pytest.mark.parametrize("chunks", [1, 4])
def test_gradient_of_the_bias_sums_what_is_not_yet_rounded(chunks):
    """The kernel sums grad_a as it is computed; summed from memory, its rounding would add up."""
    grad_h = torch.ones(1, 129, 3, dtype=torch.bfloat16)
    grad_h[0, 0] = -128.0
    h, u = torch.ones_like(grad_h), torch.full((3,), 2.0**-9, dtype=torch.bfloat16)
    *_, grad_bias = scan_backward(grad_h, None, h, u, None, chunks=chunks, rows=4)
    expected = gradients_by_formula(
        grad_h.double(), None, h.double(), u.double(), None, nonlinearity="relu", reverse=False
    )
    assert grad_bias.dtype == torch.bfloat16
    torch.testing.assert_close(grad_bias.double(), expected[3], rtol=4e-3, atol=0)


def test_clip_in_float64_is_not_rounded_to_float32():
    check_scan(
        Case(2, 12, 5, dtype=torch.float64, grad_clip=0.3), scan_forward, scan_backward, rows=2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_accurate_at_every_size(dtype):
    z = torch.logspace(-30, 2, 400, dtype=torch.float64).to(dtype)
    z = torch.cat([z, -z, torch.tensor([0.0, torch.inf, -torch.inf, 0.6], dtype=dtype)])
    a = z.reshape(1, 1, -1)
    h = torch.empty_like(a)
    scan_forward(
        a, torch.zeros(len(z), dtype=dtype), None, h, nonlinearity="tanh", rows=2, block_n=128
    )
    expected = torch.tanh(z.double())
    error = ((h.flatten().double() - expected).abs() / expected.abs().clamp(min=1e-300)).max()
    assert error < 6 * torch.finfo(dtype).eps


def test_tanh_takes_one_chunk():
    a = torch.zeros(1, 8, 1)
    with pytest.raises(ValueError, match="chunks=2"):
        scan_forward(a, torch.ones(1), None, a, nonlinearity="tanh", chunks=2)


@pytest.mark.parametrize("chunks", [1, 2])
def test_one_channel(chunks):
    """Compiled, an N of 1 is a plain number instead of a tensor; in the interpreter it is not."""
    check_scan(Case(2, 24, 1, grad_clip=0.5), scan_forward, scan_backward, chunks=chunks, rows=4)


def test_empty():
    for B, T, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        check_scan(Case(B, T, N), scan_forward, scan_backward, chunks=2, rows=2)
