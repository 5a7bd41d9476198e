"""Nothing of ours is timed that is wrong: its results against the reference in float64.

Every time step is compared, of a sample of the channels. Gradients are those for the mask h > 0 of
our own output: where a pre-activation is 0 up to rounding, either side of relu is right, and a
whole path of the gradient hangs on it.
"""

import math

import torch
import torch.nn.functional as F

from bench.speed.candidates import LAYER, OURS, SCAN
from bench.speed.cases import CALL, CALL_WITH_GRADIENTS, SCAN_BACKWARD, TRAINING
from fastindrnn.functional import indrnn_scan
from fastindrnn.kernels import reference

# How far a result may be from the reference in float64, of its largest value or its norm.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SAMPLE, CHANNELS = 1 << 19, 4  # elements of the channels that are compared; so many at least
ROWS, STEPS = 4, 128  # sequences and time steps at the end of which gradients of x are compared


class Wrong(Exception):
    """A result is not what the reference computes."""


def largest(x):
    return x.abs().max()


def check(what, actual, expected, size=largest, terms=1):
    """Raises `Wrong` unless `actual` is near `expected`: by its largest element, or its norm. Of
    `terms` float32 numbers added in any order, rounding explains an error like their root."""
    error = size(actual.double() - expected).item()
    rounding = torch.finfo(torch.float32).eps * math.sqrt(terms)
    allowed = max(FLOOR[actual.dtype], rounding) * size(expected).item()
    if not error <= allowed:
        raise Wrong(f"{what} is off by {error:.2e}, allowed {allowed:.2e}: not timed")


def sample(x):
    """Indices of the channels to compare, evenly spaced, the first and the last among them."""
    wanted = max(CHANNELS, SAMPLE // (x.shape[0] * x.shape[1]))
    last = x.shape[-1] - 1
    return torch.linspace(0, last, min(wanted, last + 1), device=x.device).round().long()


def before(x):
    """x (B, T, N) one time step earlier: 0, then x without its last time step."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def after(x, steps=1):
    """x (B, T, N) some time steps later, 0 behind its end."""
    return F.pad(x[:, steps:], (0, 0, 0, steps))


def check_states(a, u, h):
    """Every time step of h from our own state before it: by induction the whole is right if every
    step is. a, h (B, T, n); u (n,)."""
    steps = a.double().flatten(0, 1).unsqueeze(1)
    expected, _ = reference.scan(steps, u.double(), before(h).double().flatten(0, 1))
    check("h", h, expected.view(h.shape))


def check_ours(case, name, function, inputs):
    """Checks a candidate, bound to its inputs, if it is ours."""
    if name == SCAN:
        check_scan(inputs, case.what == SCAN_BACKWARD)
    elif name in OURS and case.what in (CALL, CALL_WITH_GRADIENTS):
        module, _ = function.args
        weight, bias = (module.get_parameter(f"{part}_ih_l0") for part in ("weight", "bias"))
        expected = torch.relu(F.linear(inputs.x.double(), weight.double(), bias.double()))
        check("h", function().detach().view_as(expected), expected)
    elif name == LAYER:
        check_layer(function.module, inputs, case.what == TRAINING)


def gradients(h, leaves, grad):
    """0 where h does not depend on a leaf: on u, if there is but one time step."""
    return torch.autograd.grad(h, leaves, grad, materialize_grads=True)


def check_scan(inputs, training):
    """`indrnn_scan`; if `training`, also its gradients."""
    a, u = (part.detach().requires_grad_(training) for part in (inputs.x, inputs.u))
    with torch.set_grad_enabled(training):
        h, _ = indrnn_scan(a, u)
    channels = sample(h)
    some, some_u = h.detach()[..., channels], u.detach()[channels]
    check_states(a.detach()[..., channels], some_u, some)
    if not training:
        return
    grad_a, grad_u = gradients(h, (a, u), inputs.grad)
    grad, grad_a = (x[..., channels].double() for x in (inputs.grad, grad_a))
    expected = torch.where(some > 0, grad + some_u.double() * after(grad_a), 0)
    check("gradient of a", grad_a.to(h.dtype), expected)
    terms = grad_a * before(some).double()
    size, count = torch.linalg.vector_norm, math.prod(h.shape[:2])
    check("gradient of u", grad_u[channels], terms.sum((0, 1)), size, count)


def gradient_of_a(h, u, grad):
    """d_t = g_t + u * d_{t+1} where h_t > 0, else 0, in float64: by doubling, as the sum over more
    and more time steps that follow. h, grad (B, T, n); u (n,)."""
    passed = (h > 0).double()
    d, factor = passed * grad.double(), passed * u.double()
    steps = 1
    while steps < h.shape[1]:
        d = d + factor * after(d, steps)
        factor = factor * after(factor, steps)
        steps *= 2
    return d


def check_layer(rnn, inputs, training):
    """The output of a layer of `IndRNN` at every time step of some channels. If `training`, also
    the gradients of these channels' parameters, and of x at the end of some sequences."""
    x = inputs.x.detach().requires_grad_(training)
    with torch.set_grad_enabled(training):
        h = rnn(x)[0]
    parameters = rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.weight_hh_l0
    channels = sample(h)
    weight, bias, u = (part.detach()[channels].double() for part in parameters)
    parts = x.detach().flatten(0, 1).split(1 << 16)  # not all of x in float64 at once
    a = torch.cat([F.linear(part.double(), weight, bias) for part in parts])
    some = h.detach()[..., channels]
    check_states(a.view(some.shape), u, some)
    if not training:
        return
    grad_x, *grads = gradients(h, (x, *parameters), inputs.grad)
    size, count = torch.linalg.vector_norm, math.prod(h.shape[:2])
    d = gradient_of_a(some, u, inputs.grad[..., channels])
    rows = zip(d.flatten(0, 1).split(1 << 16), parts, strict=True)
    expected = [
        sum(part.t() @ x_part.double() for part, x_part in rows),
        d.sum((0, 1)),
        (d * before(some).double()).sum((0, 1)),
    ]
    for name, actual, right in zip("Wbu", grads, expected, strict=True):
        check(f"gradient of {name}", actual[channels], right, size, count)
    end = slice(ROWS), slice(-STEPS, None)
    d = gradient_of_a(h.detach()[end], parameters[2].detach(), inputs.grad[end])
    check("gradient of x", grad_x[end], d @ parameters[0].detach().double(), size)
