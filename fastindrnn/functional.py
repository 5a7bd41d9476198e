"""The recurrence as functions: check the arguments, choose the way, call the operators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .checks import (
    check_direction,
    check_input,
    check_layer,
    check_options,
    check_recurrence,
    refuse_gradient_transforms,
    refuse_tangents,
)
from .kernels import reference
from .ops import calls, check_backend
from .ops.layout import halves, joined, project
from .options import (
    Direction,
    Extents,
    GradClipMode,
    Nonlinearity,
    Parameters,
    Recurrence,
    Strategy,
)
from .plan import Way, plan

ACTIVATIONS = reference.ACTIVATIONS
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


def indrnn_scan(
    a: Tensor,
    u: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: Nonlinearity = "relu",
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    resets: Tensor | None = None,
    grad_clip: float | None = None,
    grad_clip_mode: GradClipMode = "per_step",
) -> tuple[Tensor, Tensor]:
    """The recurrence alone: h_t = f(a_t + u * h_{t-1}), channel by channel.

    Args:
        a: input (B, T, N), any strides; or (total, N) with `cu_seqlens`. float32, float64, bfloat16
            or float16; the state is float32, for float64 input float64.
        u: recurrent weights (N,), of a floating dtype of its own.
        h0: initial state (B, N); zeros if None.
        nonlinearity: f: "relu", "identity", "hardtanh" (to [-1, 1]), "relu6" (to [0, 6]) or "tanh".
        direction: "forward", from each sequence's first step to its last; "reverse", from its last
            step to its first, so that h_{t-1} above is h_{t+1} and h_n is the state at step 0; or
            "both": the first N/2 channels forwards, the others in reverse.
        lengths: (B,) integers from 0 to T. Later steps are padding: h is 0 there, no gradient
            arrives there, and what the input holds there is not read.
        cu_seqlens: (B + 1,) integers, 0 first, `total` last, not decreasing: sequence b is
            a[cu_seqlens[b] : cu_seqlens[b + 1]]. Not together with `lengths`.
        resets: (B, T), or (total,), booleans: where true, the state that the step starts from is 0.
        grad_clip: bound of the gradients, None for none.
        grad_clip_mode: "per_step" clips, at every step of the backward, the gradient with respect
            to a_t + u * h_{t-1} before it goes on to step t - 1 (as Lasagne's grad_clipping, and
            the authors' Theano code); "result" clips the finished gradients of a, u and h0 (as the
            authors' CUDA code).

    Returns:
        h, of a's shape, dtype and layout; h_n (B, N) of a's dtype, the state after each sequence's
        last step (h0 if it has none).

    Raises:
        TypeError, ValueError: an argument does not fit; raised before any computation.

    Source: Li et al. 2018, arXiv 1803.04831, equation 4.

    Example:
        >>> a, u = torch.randn(2, 100, 64), torch.rand(64)
        >>> h, h_n = indrnn_scan(a, u)
    """
    extents = Extents(lengths, cu_seqlens, resets)
    check_input("a", a, extents)
    check_recurrence(a, a.shape[-1], u, h0, extents)
    check_options(nonlinearity, grad_clip, grad_clip_mode)
    check_direction(direction, a.shape[-1])
    recurrence = Recurrence(nonlinearity, direction, grad_clip, grad_clip_mode)
    return run_scan(a, u, h0, extents, recurrence)


def indrnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    h0: Tensor | None = None,
    *,
    strategy: Strategy = "auto",
    nonlinearity: Nonlinearity = "relu",
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    resets: Tensor | None = None,
    grad_clip: float | None = None,
    grad_clip_mode: GradClipMode = "per_step",
) -> tuple[Tensor, Tensor]:
    """One layer: h_t = f(W x_t + b + u * h_{t-1}).

    Memory: for the backward h is kept, and x where the weight is trained (with `lengths` a copy of
    x whose padding is 0), and nothing else of their size; not the projection W x_t + b.

    Args:
        x: input (B, T, K), or (total, K) with `cu_seqlens`; any strides.
        weight: W (N, K), of x's dtype (under autocast both are cast).
        bias: b (N,), of x's dtype, or None.
        strategy: how projection and recurrence share the work. "fused": one kernel, in which the
            recurrence takes the projection from registers; on a GPU alone, and not for float64 or
            tanh. "split": the projection by PyTorch's matrix product, then the recurrence in
            place; on a GPU for so many sequences at a time as stay in its cache. "auto": by the
            shape, whichever is faster. The backend "reference" takes no notice of it. Where
            `grad_clip` bounds results, the projection is a tensor of its own until the recurrence
            has read it, and "fused" an error.
        u, h0, nonlinearity, direction, lengths, cu_seqlens, resets: as in `indrnn_scan`.
        grad_clip, grad_clip_mode: as in `indrnn_scan`; with "result", `grad_clip` bounds the
            gradients of W x_t + b, u and h0.

    Returns:
        h (B, T, N) or (total, N), in x's order of batch and time in memory; h_n (B, N).

    Raises:
        TypeError, ValueError: an argument does not fit, or the strategy cannot serve the arguments;
            raised before any computation.

    Source: Li et al. 2018, arXiv 1803.04831, equation 4.
    """
    extents = Extents(lengths, cu_seqlens, resets)
    parameters = Parameters(weight, bias, u)
    check_input("x", x, extents)
    check_options(nonlinearity, grad_clip, grad_clip_mode, strategy)
    check_layer(x, parameters, h0, extents)
    check_direction(direction, weight.shape[0])
    if lengths is not None:
        # What stands in the padding must not reach the weight's gradient, and 0 * NaN is not 0.
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        x = x.masked_fill(padding[..., None], 0)
    recurrence = Recurrence(nonlinearity, direction, grad_clip, grad_clip_mode)
    way = plan(x, (parameters,), h0, extents, recurrence, strategy=strategy).way
    return run_layer(x, parameters, h0, extents, recurrence, way, strategy)


def run_scan(
    a: Tensor, u: Tensor, h0: Tensor | None, extents: Extents, recurrence: Recurrence
) -> tuple[Tensor, Tensor]:
    """`indrnn_scan` of arguments that are checked."""
    parameters = Parameters(None, None, u)
    way = plan(a, (parameters,), h0, extents, recurrence).way
    if way == "step":
        return _one_step(a, parameters, h0)
    refuse_tangents(a, u, h0)
    check_backend(a.device)
    if way == "reference":
        return _reference(a, u, h0, extents, recurrence)
    refuse_gradient_transforms(a, u, h0)
    if recurrence.clips_results:
        assert recurrence.grad_clip is not None
        a, u, h0 = _clip_results(recurrence.grad_clip, a, u, h0)
        recurrence = recurrence.without_clip()
    h, h_n = calls.scan(a, u, h0, extents, recurrence)
    return h, h_n


def run_layer(
    x: Tensor,
    parameters: Parameters,
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
    way: Way,
    strategy: Strategy = "auto",
) -> tuple[Tensor, Tensor]:
    """`indrnn` the way that was planned. The caller has checked the arguments; the padding of x is
    0."""
    if way == "step":
        return _one_step(x, parameters, h0)
    if way in ("projection then scan", "reference"):
        assert parameters.weight is not None
        a = project(x, parameters.weight, parameters.bias)
        return run_scan(a, parameters.u, h0, extents, recurrence)
    refuse_tangents(x, h0, *parameters.present())
    check_backend(x.device)
    refuse_gradient_transforms(x, h0, *parameters.present())
    if recurrence.clips_results:  # without gradients, or the projection would be a tensor
        recurrence = recurrence.without_clip()
    h, h_n = calls.indrnn(x, parameters, h0, extents, recurrence, strategy)
    return h, h_n


def run_stack(
    x: Tensor,
    layers: Sequence[Parameters],
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
) -> tuple[Tensor, Tensor]:
    """`run_layer` for layers one on the other, in one direction, with a clip at each step or none:
    all with a bias or none; h0 (L, B, N). Returns h of the last layer and h_n (L, B, N)."""
    input = x
    for i, layer in enumerate(layers):
        check_layer(input, layer, None if h0 is None else h0[i], extents)
        input = x[..., :1].expand(*x.shape[:-1], len(layer.u))  # of the form of h
    parameters = [tensor for layer in layers for tensor in layer.present()]
    refuse_tangents(x, h0, *parameters)
    check_backend(x.device)
    refuse_gradient_transforms(x, h0, *parameters)
    h, h_n, _ = calls.stack(x, layers, h0, extents, recurrence, "auto")
    return h, h_n


def run_step(x: Tensor, parameters: Parameters, h: Tensor | None) -> Tensor:
    """One step of a layer with relu by PyTorch's own operations: x (..., K), h (..., N) to the next
    h.

    As in the compiled loops, a state that fades becomes 0 before its numbers are too small to be
    normal ones, with which arithmetic is many times slower.
    """
    weight = parameters.weight
    z = x if weight is None else linear(x, weight, parameters.bias)
    if h is None and parameters.u.requires_grad and torch.is_grad_enabled():
        # Or u had no gradient, and DistributedDataParallel waits for one of each parameter.
        h = z.new_zeros(())
    if h is not None:
        z = torch.addcmul(z, parameters.u, h)
    return torch.threshold(z, _TINY[z.dtype], 0.0)


def _one_step(x: Tensor, parameters: Parameters, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    h = run_step(x.squeeze(1), parameters, h0)
    return h.unsqueeze(1), h.clone()  # two results that may be changed in place


def _clip_results(limit: float, *tensors: Tensor | None) -> list[Any]:
    """Copies of the tensors, whose gradients are clipped when the recurrence's backward is done:
    an operator around the recurrence, because the second derivative has to pass it too."""
    if not torch.is_grad_enabled():
        return list(tensors)
    return [None if x is None else calls.clip_gradient(x, limit) for x in tensors]


def _reference(
    a: Tensor, u: Tensor, h0: Tensor | None, extents: Extents, recurrence: Recurrence
) -> tuple[Tensor, Tensor]:
    def run(a, u, h0, *, reverse):
        return reference.scan(
            a,
            u,
            h0,
            nonlinearity=recurrence.nonlinearity,
            reverse=reverse,
            grad_clip=recurrence.grad_clip,
            grad_clip_mode=recurrence.grad_clip_mode,
            **extents.by_name(),
        )

    if recurrence.direction != "both":
        return run(a, u, h0, reverse=recurrence.direction == "reverse")
    first, second = halves(a, u, h0)
    h, h_n = joined(run(*first, reverse=False), run(*second, reverse=True))
    return h, h_n
