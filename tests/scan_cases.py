"""Random cases of the scan, and the check that every backend must pass on them.

The forward is compared with the reference in float64. The backward is compared with the formula of
the gradient in float64 on the same h, and test_reference compares the formula with the reference's
autograd. The reference's autograd alone would not do: it has an h of its own, and where the two h
are rounded to different sides of a bound, the gradients differ.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from tolerance import assert_close_to_reference

from fastindrnn.kernels import reference

BOUNDS = {"relu": (0, torch.inf), "hardtanh": (-1, 1), "relu6": (0, 6)}


@dataclass(frozen=True)
class Case:
    B: int
    T: int
    N: int
    dtype: torch.dtype = torch.float32
    nonlinearity: str = "relu"
    reverse: bool = False
    has_h0: bool = True
    form: str = "padded"  # "padded" (all of length T), "lengths" or "packed" (cu_seqlens)
    has_resets: bool = False
    has_grad_h_n: bool = True
    grad_clip: float | None = None
    time_first: bool = False
    seed: int = 0


def cases(T=40, N=70, **fixed):
    options = {
        "B": st.sampled_from([1, 2, 3, 5]),
        "T": st.integers(0, T),
        "N": st.one_of(st.sampled_from([1, 3, N]), st.integers(1, N)),
        "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
        "nonlinearity": st.sampled_from(list(reference.ACTIVATIONS)),
        "reverse": st.booleans(),
        "has_h0": st.booleans(),
        "form": st.sampled_from(["padded", "lengths", "packed"]),
        "has_resets": st.booleans(),
        "has_grad_h_n": st.booleans(),
        "grad_clip": st.sampled_from([None, 0.5, 3.0]),
        "time_first": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
    options |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(Case, **options)


def inputs(case):
    """a, u, h0, options of the scan; grad_h, grad_h_n. Padding holds NaN."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    def batch(B, T, N):
        return normal(T, B, N).transpose(0, 1) if case.time_first else normal(B, T, N)

    u = (torch.rand(case.N, generator=generator, dtype=torch.float64) * 2.2 - 1.1).to(case.dtype)
    h0 = normal(case.B, case.N) if case.has_h0 else None
    grad_h_n = normal(case.B, case.N) if case.has_grad_h_n else None
    options = {"nonlinearity": case.nonlinearity, "reverse": case.reverse}
    if case.form == "packed":
        lengths = torch.randint(0, case.T + 1, (case.B,), generator=generator)
        options["cu_seqlens"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        a, grad_h = (normal(int(lengths.sum()), case.N) for _ in range(2))
    else:
        a, grad_h = (batch(case.B, case.T, case.N) for _ in range(2))
    if case.form == "lengths":
        lengths = torch.randint(0, case.T + 1, (case.B,), generator=generator)
        options["lengths"] = lengths
        padding = torch.arange(case.T) >= lengths[:, None]
        a[padding], grad_h[padding] = torch.nan, torch.nan
    if case.has_resets:
        options["resets"] = torch.rand(a.shape[:-1], generator=generator) < 0.2
    return (a, u, h0, options), (grad_h, grad_h_n)


def public_options(options):
    """The options of a kernel or of the reference as the functions of the package take them."""
    direction = "reverse" if options["reverse"] else "forward"
    return {k: v for k, v in options.items() if k != "reverse"} | {"direction": direction}


def _double(x):
    return None if x is None else x.double()


def gradients_by_formula(grad_h, grad_h_n, h, u, h0, *, grad_clip=None, **options):
    """grad_a, grad_u, grad_h0 and grad_bias, by d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c) in a
    plain loop: grad_a is d, and grad_bias, that of a bias, its sum over batch and time."""
    cu_seqlens, lengths = options.get("cu_seqlens"), options.get("lengths")
    resets, kind = options.get("resets"), options["nonlinearity"]
    ends = None if cu_seqlens is None else cu_seqlens.tolist()
    B = h.shape[0] if ends is None else len(ends) - 1
    grad_a, grad_u = torch.zeros_like(h), torch.zeros_like(u)
    grad_h0 = h.new_zeros(B, h.shape[-1])
    for b in range(B):
        if ends is None:
            where = (b, slice(0, h.shape[1] if lengths is None else int(lengths[b])))
        else:
            where = slice(ends[b], ends[b + 1])
        states, g, d = h[where], grad_h[where], grad_a[where]
        reset = None if resets is None else resets[where]
        steps = list(range(states.shape[0]))  # in the order of the recurrence
        if options["reverse"]:
            steps.reverse()
        grad_state = torch.zeros_like(u) if grad_h_n is None else grad_h_n[b]
        first = torch.zeros_like(u) if h0 is None else h0[b]
        for i in reversed(range(len(steps))):
            t = steps[i]
            previous = states[steps[i - 1]] if i else first
            total = g[t] + grad_state
            if kind == "tanh":
                total = (1 - states[t] ** 2) * total
            elif kind in BOUNDS:
                low, high = BOUNDS[kind]
                at_top = (states[t] >= high) & (states[t] < torch.inf)
                total = torch.where((states[t] <= low) | at_top, 0, total)
            if grad_clip is not None:
                total = total.clamp(-grad_clip, grad_clip)
            d[t] = total
            grad_state = u * total
            if reset is not None and reset[t]:
                grad_state, previous = torch.zeros_like(grad_state), torch.zeros_like(previous)
            grad_u += total * previous
        grad_h0[b] = grad_state
    return grad_a, grad_u, grad_h0, grad_a.flatten(0, -2).sum(0)


def sizes_of_sums(grad_a, h, h0):
    """For the sums over batch and time, a bound of the sum of their terms' magnitudes."""
    terms = grad_a.double().abs().flatten(0, -2).sum(0)
    states = [x.double().nan_to_num(0).abs().max() for x in (h, h0) if x is not None and x.numel()]
    if not states or not terms.numel():
        return {}
    return {"grad_bias": terms.max().item(), "grad_u": (terms.max() * max(states)).item()}


def check_scan(case, forward, backward, **launch):
    """Checks a backend's `forward` and `backward` on a case. launch: options of its own."""
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(case)
    h = torch.full_like(a, torch.nan)
    h_n = forward(a, u, h0, h, **options, **launch)
    clean = torch.where(a.isnan(), 0, a)
    expected = reference.scan(clean.double(), u.double(), _double(h0), **options)
    loop = reference.scan(clean, u, h0, **options)
    for what, *three in zip(("h", "h_n"), (h, h_n), expected, loop, strict=True):
        assert three[0].dtype == case.dtype
        assert_close_to_reference(*three, what=what)

    clip = {"grad_clip": case.grad_clip}
    actual = backward(grad_h, grad_h_n, h, u, h0, **options, **clip, **launch)
    g = torch.where(grad_h.isnan(), 0, grad_h)
    double = [_double(x) for x in (g, grad_h_n, h, u, h0)]
    expected = gradients_by_formula(*double, **options, **clip)
    loop = gradients_by_formula(g, grad_h_n, h, u, h0, **options, **clip)
    names = ("grad_a", "grad_u", "grad_h0", "grad_bias")
    magnitudes = sizes_of_sums(expected[0], h, h0)
    for what, *three in zip(names, actual, expected, loop, strict=True):
        assert three[0].dtype == case.dtype
        assert_close_to_reference(*three, what=what, magnitude=magnitudes.get(what, 0.0))


def loss_of(h, h_n):
    """A number that every element of both has a different part in."""
    return h.sin().sum() + h_n.cos().sum()


def check_that_nan_lasts_until_a_reset(scan_forward, **options):
    """Also where u is 0 or a power of it has become 0, and across chunks."""
    a = torch.zeros(2, 40, 7)
    a[:, 3] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -1.0, 1e9, -1e25])
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[1, 21] = True
    h = torch.zeros_like(a)
    h_n = scan_forward(a, u, None, h, resets=resets, **options)
    assert h[0, 3:].isnan().all()
    assert h[1, 3:21].isnan().all()
    assert (h[1, 21:] == 0).all()
    assert h_n[0].isnan().all()
    assert (h_n[1] == 0).all()


def check_that_nan_in_the_gradient_lasts_until_a_bound(scan_backward, **options):
    """Until the first stored state, backwards in time, that is at a bound; also across chunks."""
    h = torch.ones(1, 40, 5)
    h[0, 9] = 0.0
    grad_h = torch.zeros(1, 40, 5)
    grad_h[0, 37] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 1.0, 1e25])
    grad_a, _, grad_h0, _ = scan_backward(grad_h, None, h, u, None, **options)
    assert grad_a[0, 10:38].isnan().all()
    assert (grad_a[0, :10] == 0).all()
    assert (grad_a[0, 38:] == 0).all()
    assert (grad_h0 == 0).all()


def check_that_an_infinite_output_is_at_no_bound(kernels, nonlinearity, **options):
    """The gradient passes, as in PyTorch's relu. In float16 a finite state, too, may be stored as
    an infinity. kernels: with `scan_forward` and `scan_backward`, which take the options."""
    a = torch.randn(1, 40, 4, generator=torch.Generator().manual_seed(0))
    a[0, 15, :2], a[0, 25, 2] = torch.inf, -torch.inf
    u, h = torch.tensor([0.0, 0.5, 0.5, -0.5]), torch.empty_like(a)
    options["nonlinearity"] = nonlinearity
    kernels.scan_forward(a, u, None, h, **options)
    grad_h = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    grad_a, grad_u, *_ = kernels.scan_backward(grad_h, None, h, u, None, **options)
    a.requires_grad_()
    u.requires_grad_()
    reference.scan(a, u, nonlinearity=nonlinearity)[0].backward(grad_h)
    torch.testing.assert_close((grad_a, grad_u), (a.grad, u.grad), equal_nan=True)
    assert grad_a[0, 15, :2].all()
