"""The definition in plain PyTorch, for any dtype and device: the oracle of every test.

    h_t = f(a_t + u * h_{t-1})        Li et al. 2018, arXiv 1803.04831, eq. 4, with a_t = W x_t + b

PyTorch's own autograd differentiates it, to any order. It is never clever: a loop over the
sequences where they differ in length, and a loop over time.
"""

import itertools

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "relu": torch.relu,
    "identity": lambda z: z,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "tanh": torch.tanh,
}


class _ClipGradient(torch.autograd.Function):
    """The identity, whose gradient is clipped to [-limit, limit] elementwise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-ctx.limit, ctx.limit), None


def scan(
    a,
    u,
    h0=None,
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,
    cu_seqlens=None,
    resets=None,
    grad_clip=None,
    grad_clip_mode="per_step",
):
    """The recurrence alone, with the options of `fastindrnn.functional.indrnn_scan`, but for
    `reverse`: this function computes one direction.

    a: (B, T, N), or (total, N) with `cu_seqlens`; u: (N,); h0: (B, N). Returns h like a, and h_n
    (B, N). Where u or h0 is of a wider dtype than a, the state is too.
    """
    if grad_clip is not None and grad_clip_mode == "result":
        a, u = _ClipGradient.apply(a, grad_clip), _ClipGradient.apply(u, grad_clip)
        h0 = h0 if h0 is None else _ClipGradient.apply(h0, grad_clip)
        grad_clip = None
    options = {"nonlinearity": nonlinearity, "reverse": reverse, "grad_clip": grad_clip}
    if cu_seqlens is not None:
        pieces = []
        for b, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            start = None if h0 is None else h0[b : b + 1]
            reset = None if resets is None else resets[None, begin:end]
            pieces.append(_loop(a[None, begin:end], u, start, reset, **options))
        if not pieces:
            return a.clone(), a.new_zeros(0, a.shape[-1])
        return torch.cat([h[0] for h, _ in pieces]), torch.cat([h_n for _, h_n in pieces])
    if lengths is None:
        return _loop(a, u, h0, resets, **options)
    pieces = []
    for b, length in enumerate(lengths.tolist()):
        start = None if h0 is None else h0[b : b + 1]
        reset = None if resets is None else resets[b : b + 1, :length]
        h, h_n = _loop(a[b : b + 1, :length], u, start, reset, **options)
        pieces.append((F.pad(h, (0, 0, 0, a.shape[1] - length)), h_n))
    if not pieces:
        return _loop(a, u, h0, resets, **options)
    return torch.cat([h for h, _ in pieces]), torch.cat([h_n for _, h_n in pieces])


def _loop(a, u, h0, resets, *, nonlinearity, reverse, grad_clip):
    """All sequences of the batch have T steps, and a reset or none at each: resets (B, T)."""
    B, T, N = a.shape
    state = a.new_zeros(B, N) if h0 is None else h0
    activation = ACTIVATIONS[nonlinearity]
    outputs = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        if resets is not None:
            state = torch.where(resets[:, t, None], torch.zeros_like(state), state)
        z = a[:, t] + u * state
        if grad_clip is not None:
            z = _ClipGradient.apply(z, grad_clip)
        state = activation(z)
        outputs[t] = state
    h = torch.stack(outputs, 1).to(a.dtype) if outputs else a.clone()
    return h, state.to(a.dtype, copy=True)
