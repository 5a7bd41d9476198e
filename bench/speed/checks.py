"""Nothing is timed that is wrong: our results against the reference in float64.

The recurrence is compared at every time step. Where there are many, time is cut in windows and each
is compared with the reference from the state that our own result has before it: by induction the
whole is right if every window is. Channels are a sample, evenly spaced.

Values may be 4 times as far off as plain PyTorch at the same dtype is, or a floor for what rounding
alone explains. Where a pre-activation is 0 up to rounding, either side of relu is right, and a
whole path of the gradient hangs on it: so gradients are compared for the mask of our own output,
which also defines them.
"""

import math

import torch
import torch.nn.functional as F

from fastindrnn.functional import indrnn, indrnn_scan
from fastindrnn.kernels import reference

FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
STACK_FLOOR = 0.05  # of the gradients of a stack
WINDOW, WHOLE = 64, 512  # steps of a window, and how many are compared as one
SAMPLE, CHANNELS = 1 << 19, 4  # elements of the sampled channels, but this many channels at least
ROWS, STEPS = 4, 128  # what is compared of a stack of layers, at most


class Wrong(Exception):
    """A result is not what the reference computes."""


def largest(x):
    return x.abs().max()


def check(what, actual, plain, expected, size=largest, floor=None):
    """Raises `Wrong` unless `actual` is near `expected`: by its largest element, or its norm."""
    error, allowed = (size(result.double() - expected).item() for result in (actual, plain))
    allowed = max(4 * allowed, (floor or FLOOR[actual.dtype]) * size(expected).item())
    if not error <= allowed:
        raise Wrong(f"{what} is wrong: off by {error:.2e}, allowed {allowed:.2e}; not timed")


def sample(x):
    """Indices of the channels to compare, the first and the last among them."""
    wanted = max(CHANNELS, SAMPLE // (x.shape[0] * x.shape[1]))
    last = x.shape[-1] - 1
    return torch.linspace(0, last, min(wanted, last + 1), device=x.device).round().long()


def check_scan(inputs):
    """`indrnn_scan` and its gradients."""
    a, u = (part.detach().requires_grad_() for part in (inputs.x, inputs.u))
    h, _ = indrnn_scan(a, u)
    grad_a, grad_u = torch.autograd.grad(h, (a, u), inputs.grad)
    channels = sample(h)
    a, h, grad, grad_a = (part.detach()[..., channels] for part in (a, h, inputs.grad, grad_a))
    u, grad_u = u.detach()[channels], grad_u[channels]
    check_states("scan, h", a, u, h)
    check_messages("scan, gradient", grad, u, h, grad_a, grad_u)


def windows(x):
    """(B, T, N) to (B * windows, steps, N), zeros behind the last time step."""
    T, N = x.shape[1:]
    steps = T if T <= WHOLE else WINDOW
    return F.pad(x, (0, 0, 0, -T % steps)).reshape(-1, steps, N)


def states_before(h):
    """(B * windows, N): h at the last step before each window, 0 before the first."""
    parts = windows(h)[:, -1].view(h.shape[0], -1, h.shape[-1])
    return F.pad(parts[:, :-1], (0, 0, 1, 0)).flatten(0, 1)


def check_states(what, a, u, h):
    """h_t = relu(a_t + u * h_{t-1}): a, of any dtype, and h (B, T, n), u (n,)."""
    plain, expected = (
        reference.scan(windows(a).to(dtype), u.to(dtype), states_before(h).to(dtype))[0]
        for dtype in (h.dtype, torch.float64)
    )
    inside = windows(torch.ones_like(h)) > 0
    check(what, *(result[inside] for result in (windows(h), plain, expected)))


def messages(h, u, grad, h0, grad_h_n):
    """d_t and the gradient of u by the reference in float64, for an h that was computed.

    h, grad (B, T, n); u (n,); h0, grad_h_n (B, n).
    """
    h, u, grad, h0 = h.double(), u.double(), grad.double(), h0.double()
    before = torch.cat([h0[:, None], h[:, :-1]], 1)
    # An input that gives this h; where h is 0, below 0 by a margin.
    a = (torch.where(h > 0, h, -1) - u * before).requires_grad_()
    u.requires_grad_()
    return torch.autograd.grad(reference.scan(a, u, h0), (a, u), (grad, grad_h_n.double()))


def check_messages(what, grad, u, h, grad_a, grad_u):
    """The gradients of a and u, for the h that was computed."""
    first = windows(grad_a)[:, 0].view(h.shape[0], -1, h.shape[-1])
    # What arrives at a window's last state from the window after it: u * d of its first step.
    arriving = u * F.pad(first[:, 1:], (0, 0, 0, 1)).flatten(0, 1)
    d, expected_u = messages(windows(h), u, windows(grad), states_before(h), arriving)
    check(f"{what} of a", windows(grad_a), d, d)
    # As much as rounding explains: of each term to float32, and of their sum in any order.
    terms = windows(F.pad(h[:, :-1], (0, 0, 1, 0))).float() * d.float()
    chance = torch.finfo(torch.float32).eps * math.sqrt(h.shape[0] * h.shape[1])
    floor = max(FLOOR[grad_u.dtype], chance)
    check(f"{what} of u", grad_u, terms.sum((0, 1)), expected_u, floor=floor)


def product(x, weight, bias):
    """In float64, some rows at a time."""
    rows = x.flatten(0, -2).split(1 << 16)
    weight, bias = weight.double(), bias.double()
    return torch.cat([F.linear(part.double(), weight, bias) for part in rows]).unflatten(
        0, x.shape[:-1]
    )


def parameters_of(rnn):
    """(weight, bias, u) of each layer of an `IndRNN`."""
    names = "weight_ih", "bias_ih", "weight_hh"
    return [
        tuple(getattr(rnn, f"{name}_l{layer}") for name in names) for layer in range(rnn.num_layers)
    ]


def check_layers(rnn, inputs, training):
    """The output of a layer at every step; of a stack on some rows and the first steps. If
    `training`, also the gradients that some rows and the first steps give."""
    what = f"layers x {rnn.num_layers}"
    x = inputs.x.detach().requires_grad_(training)
    with torch.set_grad_enabled(training):
        h = rnn(x)[0]
    if rnn.num_layers == 1:
        channels = sample(h)
        weight, bias, u = (part.detach()[channels] for part in parameters_of(rnn)[0])
        check_states(f"{what}, h", product(inputs.x, weight, bias), u, h.detach()[..., channels])
    # Causal: what comes behind those steps does not matter to them.
    part = slice(ROWS), slice(STEPS)
    few = inputs.x[part]
    plain, expected = (output_of_layers(rnn, few, d) for d in (few.dtype, torch.float64))
    check(f"{what}, h", h.detach()[part], plain, expected, torch.linalg.vector_norm)
    if training:
        grad = torch.zeros_like(inputs.grad)
        grad[part] = inputs.grad[part]
        leaves = [leaf for layer in parameters_of(rnn) for leaf in layer]
        grad_x, *grads = torch.autograd.grad(h, [x, *leaves], grad)
        check_gradients(what, rnn, few, h.detach()[part], grad[part], [*grads, grad_x[part]])


def output_of_layers(rnn, x, dtype):
    """The same stack in plain PyTorch."""
    with torch.no_grad():
        x = x.to(dtype)
        for layer in parameters_of(rnn):
            weight, bias, u = (part.to(dtype) for part in layer)
            x, _ = reference.scan(F.linear(x, weight, bias), u)
    return x


@torch.no_grad()
def check_gradients(what, rnn, x, h, grad, actual):
    """By norm, for the outputs of each layer as they are computed. In a stack those within it are
    computed once more, layer by layer: a rounding may differ, and one relu with it."""
    layers = parameters_of(rnn)
    outputs = [x]
    for weight, bias, u in layers[:-1]:
        outputs.append(indrnn(outputs[-1], weight, bias, u)[0])
    grad, expected, names = grad.double(), [], []
    for number in reversed(range(len(layers))):
        weight, _, u = layers[number]
        zero = torch.zeros_like(h[:, 0])
        with torch.enable_grad():
            d, grad_u = messages(h, u.detach(), grad, zero, zero)
        rows, h = d.flatten(0, 1), outputs[number]
        expected[:0] = [rows.t() @ h.flatten(0, 1).double(), rows.sum(0), grad_u]
        names[:0] = [f"gradient of {part} {number}" for part in ("W", "b", "u")]
        grad = d @ weight.double()
    floor = FLOOR[x.dtype] if len(layers) == 1 else STACK_FLOOR
    size = torch.linalg.vector_norm
    for name, one, other in zip([*names, "gradient of x"], actual, [*expected, grad], strict=True):
        check(f"{what}, {name}", one, other, other, size, floor)


def check_same(what, ours, others):
    """Another implementation's h against ours, by norm: it may keep its state in the dtype."""
    off = torch.linalg.vector_norm((ours - others).float()).item()
    allowed = 10 * FLOOR[ours.dtype] * torch.linalg.vector_norm(ours.float()).item()
    if not off <= allowed:
        raise Wrong(f"{what} is wrong: its h is off ours by {off:.2e}, allowed {allowed:.2e}")
