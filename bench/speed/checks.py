"""What of ours is to be timed is right: its results against the formula in float64.

Every time step is compared, of a sample of the channels. Gradients are those for the mask h > 0 of
our own output: where a pre-activation is 0 up to rounding, either side of relu is right, and a
whole path of the gradient hangs on it.
"""

import math

import torch
import torch.nn.functional as F

from bench.speed.candidates import Gradients, output_of

# How far a result may be from float64, of its largest value or its norm.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SAMPLE, CHANNELS = 1 << 19, 4  # elements to compare, of this many channels at least
ROWS, STEPS = 4, 128  # sequences and time steps at the end of which a layer's grad_x is compared


class Wrong(Exception):
    """A result is not what the formula says."""


def largest(x):
    return x.abs().max()


def compare(what, actual, expected, size=torch.linalg.vector_norm, terms=1):
    """Raises `Wrong` unless `actual` is near `expected`: by its norm, or its largest element. The
    rounding error of a sum in float32 grows as the root of the number of its terms."""
    error = size(actual.double() - expected).item()
    rounding = torch.finfo(torch.float32).eps * math.sqrt(terms)
    allowed = max(FLOOR[actual.dtype], rounding) * size(expected).item()
    if not error <= allowed:
        raise Wrong(f"{what} is off by {error:.2e}, allowed {allowed:.2e}: not timed")


def sample(B, T, N):
    """Indices of the channels to compare, evenly spaced, the first and the last among them."""
    wanted = max(CHANNELS, SAMPLE // (B * T))
    return torch.linspace(0, N - 1, min(wanted, N)).round().long()


def before(h):
    """h (B, T, N) one time step earlier: 0, then h without its last time step."""
    return F.pad(h[:, :-1], (0, 0, 1, 0))


def gradient_of_a(h, u, grad):
    """d_t = g_t + u * d_{t+1} where h_t > 0, else 0, in float64: by doubling, as the sum over more
    and more time steps that follow. h, grad (B, T, n); u (n,)."""
    passed = (h > 0).double()
    d, factor = passed * grad.double(), passed * u
    steps = 1
    while steps < h.shape[1]:
        later_d, later = (F.pad(part[:, steps:], (0, 0, 0, steps)) for part in (d, factor))
        d, factor = d + factor * later_d, factor * later
        steps *= 2
    return d


def check(module, function, inputs):
    """Calls a function of ours, as `bind` made it of the module, and raises `Wrong` unless the
    output is right at every time step: by induction the whole is right if every step follows from
    our own state before it. So with the gradients, if the function computes some; that of a layer's
    x is compared at the end of some sequences.
    """
    h, grads = function(), None
    if isinstance(function, Gradients):
        h, grads = h
    h = output_of(h).detach().view_as(inputs.x)
    named = {name: parameter.detach() for name, parameter in module.named_parameters()}
    channels = sample(*h.shape).to(h.device)
    all_u, weight = named["weight_hh_l0"].double(), named.get("weight_ih_l0")
    some, u = h[..., channels], all_u[channels]
    if weight is None:
        a = inputs.x[..., channels].double()
    else:
        x = inputs.x.double()
        a = F.linear(x, weight[channels].double(), named["bias_ih_l0"][channels].double())
    compare("h", some, torch.relu(a + u * before(some).double()), largest)
    if grads is None:
        return
    grads, count = dict(zip(["x", *named], grads, strict=True)), math.prod(h.shape[:2])
    d = gradient_of_a(some, u, inputs.grad[..., channels])
    if weight is None:
        compare("gradient of a", grads["x"][..., channels], d, largest)
    else:
        products = d.flatten(0, 1).t() @ x.flatten(0, 1)
        compare("gradient of W", grads["weight_ih_l0"][channels], products, terms=count)
        compare("gradient of b", grads["bias_ih_l0"][channels], d.sum((0, 1)), terms=count)
        end = slice(ROWS), slice(-STEPS, None)
        grad_x = gradient_of_a(h[end], all_u, inputs.grad[end]) @ weight.double()
        compare("gradient of x", grads["x"][end], grad_x)
    grad_u = (d * before(some).double()).sum((0, 1))
    compare("gradient of u", grads["weight_hh_l0"][channels], grad_u, terms=count)
