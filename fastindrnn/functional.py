"""The recurrence as functions: check the arguments, call the operators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import ops, projected
from .checks import (
    GradClipMode,
    Nonlinearity,
    Strategy,
    check_bools,
    check_layer,
    check_lengths,
    check_options,
    check_recurrence,
    check_rows,
    refuse_tangents,
)
from .kernels import reference

ACTIVATIONS = reference.ACTIVATIONS


def indrnn_scan(
    a: Tensor,
    u: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: Nonlinearity = "relu",
    reverse: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    resets: Tensor | None = None,
    grad_clip: float | None = None,
    grad_clip_mode: GradClipMode = "message",
) -> tuple[Tensor, Tensor]:
    """The recurrence alone: h_t = f(a_t + u * h_{t-1}), channel by channel.

    Args:
        a: input (B, T, N), any strides; or (total, N) with `cu_seqlens`. float32, float64, bfloat16
            or float16; the state is float32, for float64 input float64.
        u: recurrent weights (N,), of a floating dtype of its own.
        h0: initial state (B, N); zeros if None.
        nonlinearity: f: "relu", "identity", "hardtanh" (to [-1, 1]), "relu6" (to [0, 6]) or "tanh".
        reverse: walk from each sequence's last step to its first; h_n is then the state at step 0.
        lengths: (B,) integers from 0 to T. Later steps are padding: h is 0 there, no gradient
            arrives there, and what the input holds there is not read.
        cu_seqlens: (B + 1,) integers, 0 first, `total` last, not decreasing: sequence b is rows
            cu_seqlens[b] to cu_seqlens[b + 1]. Not together with `lengths`.
        resets: (B, T), or (total,), booleans: where true, the state that the step starts from is 0.
        grad_clip: bound of the gradients, None for none.
        grad_clip_mode: "message" clips the gradient that arrives at each step's a_t + u * h_{t-1},
            inside the recurrence (as Lasagne's grad_clipping, and the authors' Theano code);
            "result" clips the finished gradients of a, u and h0 (as the authors' CUDA code).

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
    check_rows("a", a, lengths, cu_seqlens, resets)
    check_recurrence(a, a.shape[-1], u, h0, cu_seqlens)
    check_options(nonlinearity, grad_clip, grad_clip_mode)
    check_bools(reverse=reverse)
    refuse_tangents(a, u, h0)
    ops.check_backend(a.device)
    if ops.backend.current == "reference":
        return reference.scan(
            a,
            u,
            h0,
            nonlinearity=nonlinearity,
            reverse=reverse,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            resets=resets,
            grad_clip=grad_clip,
            grad_clip_mode=grad_clip_mode,
        )
    ops.refuse_gradient_transforms(a, u, h0)
    if grad_clip is not None and grad_clip_mode == "result":
        a, u, h0 = _clip_results(grad_clip, a, u, h0)
        grad_clip = None
    sequences = _int64(lengths), _int64(cu_seqlens), resets
    return ops.scan(a, u, h0, *sequences, nonlinearity, reverse, grad_clip)


def indrnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    h0: Tensor | None = None,
    *,
    strategy: Strategy = "auto",
    bidirectional: bool = False,
    nonlinearity: Nonlinearity = "relu",
    reverse: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    resets: Tensor | None = None,
    grad_clip: float | None = None,
    grad_clip_mode: GradClipMode = "message",
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
        bidirectional: the first N/2 channels walk as `reverse` says, the others the opposite way.
        u, h0 and the other options: as in `indrnn_scan`; with "result", `grad_clip` bounds the
            gradients of W x_t + b, u and h0.

    Returns:
        h (B, T, N) or (total, N), in x's order of batch and time in memory; h_n (B, N).

    Raises:
        TypeError, ValueError: an argument does not fit, or the strategy cannot serve the arguments;
            raised before any computation.

    Source: Li et al. 2018, arXiv 1803.04831, equation 4.
    """
    check_rows("x", x, lengths, cu_seqlens, resets)
    check_options(nonlinearity, grad_clip, grad_clip_mode, strategy)
    check_layer(x, weight, bias, u, h0, cu_seqlens)
    check_bools(reverse=reverse, bidirectional=bidirectional)
    if bidirectional and weight.shape[0] % 2:
        raise ValueError(
            f"bidirectional needs as many channels in each direction, but weight is "
            f"{tuple(weight.shape)}"
        )
    if lengths is not None:
        # What stands in the padding must not reach the weight's gradient, and 0 * NaN is not 0.
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        x = x.masked_fill(padding[..., None], 0)
    options = lengths, cu_seqlens, resets, nonlinearity, reverse, bidirectional, strategy
    return run_layer(x, weight, bias, u, h0, *options, grad_clip, grad_clip_mode)


def run_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """`indrnn` for layers, with all options, in the operator's order: resets, nonlinearity,
    reverse, bidirectional, strategy, grad_clip, grad_clip_mode. Layers have checked them and the
    sequences, and their rows are 0 in the padding."""
    check_layer(x, weight, bias, u, h0, cu_seqlens)
    refuse_tangents(x, weight, bias, u, h0)
    ops.check_backend(x.device)
    *walk, grad_clip, grad_clip_mode = options
    clips_results = grad_clip is not None and grad_clip_mode == "result"
    if ops.backend.current != "reference":
        ops.refuse_gradient_transforms(x, weight, bias, u, h0)
    # Without gradients there is nothing to clip, and the operator does.
    if ops.backend.current == "reference" or (clips_results and torch.is_grad_enabled()):
        return _project_and_scan(x, weight, bias, u, h0, lengths, cu_seqlens, *options)
    lengths, cu_seqlens = _int64(lengths), _int64(cu_seqlens)
    return projected.indrnn(x, weight, bias, u, h0, lengths, cu_seqlens, *walk, grad_clip)


def run_step(x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, h: Tensor | None) -> Tensor:
    """A step of a layer with relu in inference: x (..., K), h (..., N) to the next h.

    PyTorch's own operations take it less time than a kernel takes to be called. As in the compiled
    loops, a state that fades is 0 before its numbers are too small to be normal ones.
    """
    a = linear(x, weight, bias)
    if h is not None:
        a.addcmul_(u, h)
    return torch.threshold_(a, torch.finfo(a.dtype).tiny, 0.0)


def takes_step(
    x: Tensor, weight: Tensor, u: Tensor, h: Tensor | None, nonlinearity: Nonlinearity
) -> bool:
    """Whether `run_step` is what `run_layer` would compute for one step, and nobody is to see the
    operator. In half precision it is not: there the state is float32."""
    return (
        nonlinearity == "relu"
        and x.dtype in (torch.float32, torch.float64)
        and weight.dtype == u.dtype == x.dtype
        and weight.device == x.device
        and (h is None or (h.dtype == x.dtype and h.device == x.device))
        and ops.backend.current is None
        and not ops.is_watched(x, weight, u, h)
    )


def run_stack(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    us: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """`run_layer` for layers one on the other: biases () or one for each, h0 (L, B, N), neither of
    the options bidirectional and grad_clip_mode, which is "message". Returns h of the last layer
    and h_n (L, B, N)."""
    rows = x
    for layer, (weight, u) in enumerate(zip(weights, us, strict=True)):
        bias = biases[layer] if biases else None
        check_layer(rows, weight, bias, u, None if h0 is None else h0[layer], cu_seqlens)
        rows = x[..., :1].expand(*x.shape[:-1], len(u))  # of the form of h
    refuse_tangents(x, *weights, *biases, *us, h0)
    ops.check_backend(x.device)
    ops.refuse_gradient_transforms(x, *weights, *biases, *us, h0)
    sequences = _int64(lengths), _int64(cu_seqlens)
    operator = torch.ops.fastindrnn.stack.default
    h, h_n, _ = operator(x, weights, biases, us, h0, *sequences, *options)
    return h, h_n


def _clip_results(limit: float, *tensors: Tensor | None) -> list[Any]:
    """Copies of the tensors, whose gradients are clipped when the recurrence's backward is done:
    an operator around the recurrence, because the second derivative has to pass it too."""
    if not torch.is_grad_enabled():
        return list(tensors)
    clip = torch.ops.fastindrnn.clip_gradient.default
    return [None if x is None else clip(x, limit) for x in tensors]


def _project_and_scan(
    x,
    weight,
    bias,
    u,
    h0,
    lengths,
    cu_seqlens,
    resets,
    nonlinearity,
    reverse,
    bidirectional,
    strategy,
    grad_clip,
    grad_clip_mode,
):
    """`run_layer` of a projection and a recurrence that know nothing of each other: in the
    reference, and where the gradient of W x + b is to be clipped."""

    def run(a, u, h0, reverse):
        return indrnn_scan(
            a,
            u,
            h0,
            nonlinearity=nonlinearity,
            reverse=reverse,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            resets=resets,
            grad_clip=grad_clip,
            grad_clip_mode=grad_clip_mode,
        )

    is_time_first = ops.is_time_first(x)
    if is_time_first:  # what both make of it is to lie in memory as x does
        a = linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    else:
        a = linear(x, weight, bias)
    if not bidirectional:
        return run(a, u, h0, reverse)
    states = (None, None) if h0 is None else h0.chunk(2, -1)
    parts = zip(a.chunk(2, -1), u.chunk(2), states, (reverse, not reverse), strict=True)
    (first, first_end), (second, second_end) = (run(*part) for part in parts)
    ends = torch.cat((first_end, second_end), -1)
    if is_time_first:
        pair = first.transpose(0, 1), second.transpose(0, 1)
        return torch.cat(pair, -1).transpose(0, 1), ends
    return torch.cat((first, second), -1), ends


def _int64(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.int64).contiguous()


def last_output(
    output: Tensor, lengths: Tensor | None = None, *, batch_first: bool = False
) -> Tensor:
    """The output at each sequence's last step: what a classifier of whole sequences takes.

    h_n is the state of the recurrence, before a norm that comes after it; `output` has the norm.

    Args:
        output: (T, B, F), or (B, T, F) with batch_first: what a layer returned for a padded batch.
            With two directions, the second half of the features is at its own last step at time 0:
            take that from `output` itself.
        lengths: (B,) integers from 0 to T, as given to the layer; None: all have T steps.
        batch_first: as in the layer.

    Returns:
        (B, F); zeros for a sequence without steps.

    Raises:
        TypeError, ValueError: an argument does not fit, or T is 0.

    Example:
        >>> rnn = fastindrnn.IndRNN(10, 20, batch_first=True)
        >>> lengths = torch.tensor([7, 4, 1])
        >>> output, _ = rnn(torch.randn(3, 7, 10), lengths=lengths)
        >>> last = last_output(output, lengths, batch_first=True)  # (3, 20)
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"output must be a tensor, but is {type(output).__name__}")
    check_bools(batch_first=batch_first)
    if output.dim() != 3:
        raise ValueError(f"output must have 3 dimensions, but has shape {tuple(output.shape)}")
    rows = output if batch_first else output.transpose(0, 1)
    B, T, _ = rows.shape
    if T == 0:
        raise ValueError("output has no time steps, so that there is no last one")
    if lengths is None:
        return rows[:, -1]
    check_lengths(lengths, B, T, output.device)
    last = (lengths - 1).clamp(min=0)
    return rows.take_along_dim(last[:, None, None], 1).squeeze(1)
