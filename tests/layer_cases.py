"""Random cases of the layer on a GPU, and the checks that every way of computing it must pass."""

import math

import torch
from fastindrnn.kernels.gpu import model
from hypothesis import strategies as st
from scan_cases import cases, gradients_by_formula, inputs, sizes_of_sums
from tolerance import assert_close_to_reference
from triton_cases import INTERPRETED, on_device

from fastindrnn.kernels import gpu, reference


def fused(
    chained=False, *, block_n=16, block_t=16, block_k=16, lanes=4, adjacent=2, ahead=False
):  # fmt: skip
    """A choice of the fused kernel with a small tile."""
    tile = model.Tile(
        block_n=block_n,
        block_t=block_t,
        block_k=block_k,
        warps=4,
        stages=1 if ahead else 2,
        lanes=lanes,
        adjacent=adjacent,
        ahead=ahead,
    )
    return model.Choice(tile, chained, slices=1)


def split(slices=1):
    """A choice of the library's product and the scan."""
    return model.Choice(None, chained=False, slices=slices)


# (lanes, adjacent) are those of every kind of accumulator. With `ahead`, a block of K is at least
# 128 bytes. K is one block in some cases, and several in others.
fused_choices = st.builds(
    lambda chained, layout, block_k, ahead, block_t: fused(
        chained,
        block_n=16 if INTERPRETED else 64,
        block_t=block_t,
        block_k=2 * block_k if ahead else block_k,
        lanes=layout[0],
        adjacent=layout[1],
        ahead=ahead,
    ),
    chained=st.booleans(),
    layout=st.sampled_from([(4, 2), (2, 4), (1, 1)]),
    block_k=st.sampled_from([16, 32]),
    ahead=st.booleans(),
    block_t=st.sampled_from([16, 32]),
)
choices = st.one_of(fused_choices, st.builds(split, st.sampled_from([1, 2])))
layers = cases(T=40, N=20, dtype=torch.float32).filter(lambda case: case.nonlinearity != "tanh")


def layer_inputs(case, K, directions):
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
    weight = normal(directions * case.N, K) / math.sqrt(K)
    bias = normal(directions * case.N)
    if directions == 2:
        u = torch.cat([u, u.roll(1).neg()])
        h0 = None if h0 is None else torch.cat([h0, h0.flip(0)], 1)
    return x, weight, bias, u, h0, options


def by_reference(x, weight, bias, u, h0, directions, options):
    """h and h_n by the reference, of each direction in turn."""
    a = torch.nn.functional.linear(x, weight, bias)
    results = []
    for direction in range(directions):
        channels = slice(direction * len(u) // directions, (direction + 1) * len(u) // directions)
        initial = None if h0 is None else h0[:, channels]
        taken = options | {"reverse": options["reverse"] != bool(direction)}
        results.append(reference.scan(a[..., channels], u[channels], initial, **taken))
    return [torch.cat(parts, -1) for parts in zip(*results, strict=True)]


def run_forward(x, weight, bias, u, h0, choice, **options):
    """h and h_n of `gpu.indrnn_forward` on the device, with tensors and results on the CPU."""
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
    """The choice as far as the case allows it: packed sequences are neither chained nor sliced, a
    batch with time first is not sliced, and 0 steps are not chained."""
    if case.form == "packed" or case.time_first:
        choice = choice._replace(slices=1)
    return choice._replace(chained=choice.chained and case.form != "packed" and case.T > 0)


def check_forward(case, K, directions, choice, has_bias=True):
    """`gpu.indrnn_forward` on a case with K input features, against the reference."""
    x, weight, bias, u, h0, options = layer_inputs(case, K, directions)
    bias = bias if has_bias else None
    choice = possible(choice, case)
    actual = run_forward(x, weight, bias, u, h0, choice, bidirectional=directions == 2, **options)
    clean = torch.where(x.isnan(), 0, x)
    expected = by_reference(*map(double, (clean, weight, bias, u, h0)), directions, options)
    loop = by_reference(clean, weight, bias, u, h0, directions, options)
    for what, *three in zip(("h", "h_n"), actual, expected, loop, strict=True):
        assert_close_to_reference(*three, what=what)


def check_backward(case, K, choice):
    """`gpu.projected_backward` on a case, where the next layer has K channels, by the formula."""
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
    names = ("grad_a", "grad_u", "grad_h0", "grad_bias")
    results = zip(names, actual, formula(torch.float64), formula(case.dtype), strict=True)
    magnitudes = sizes_of_sums(actual[0].cpu(), h, h0)
    for what, *three in results:
        magnitude = magnitudes.get(what, 0.0)
        assert_close_to_reference(three[0].cpu(), *three[1:], what=what, magnitude=magnitude)
