"""The recurrence as functions: check the arguments, call the operators."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from . import ops
from .kernels import reference

ACTIVATIONS = reference.ACTIVATIONS
Nonlinearity = Literal["relu", "identity", "hardtanh", "relu6", "tanh"]
GradClipMode = Literal["message", "result"]


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
    _check_floating("a", a)
    _check_rows("a", a, cu_seqlens)
    _check_scan(a, a.shape[-1], u, h0, lengths, cu_seqlens, resets)
    check_options(nonlinearity, grad_clip, grad_clip_mode)
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
    return torch.ops.fastindrnn.scan(
        a,
        u,
        h0,
        _int64(lengths),
        _int64(cu_seqlens),
        resets,
        nonlinearity,
        reverse,
        grad_clip,
        grad_clip_mode,
    )


def indrnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """One layer: h_t = f(W x_t + b + u * h_{t-1}). The projection W x_t + b is not kept for the
    backward.

    Args:
        x: input (B, T, K), or (total, K) with `cu_seqlens`; any strides.
        weight: W (N, K), of x's dtype (under autocast both are cast).
        bias: b (N,), of x's dtype, or None.
        u, h0 and the options: as in `indrnn_scan`; with "result", `grad_clip` bounds the gradients
            of W x_t + b, u and h0.

    Returns:
        h (B, T, N) or (total, N), in x's order of batch and time in memory; h_n (B, N).

    Raises:
        TypeError, ValueError: an argument does not fit; raised before any computation.

    Source: Li et al. 2018, arXiv 1803.04831, equation 4.
    """
    _check_floating("x", x)
    _check_rows("x", x, cu_seqlens)
    _check_floating("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be (hidden, {x.shape[-1]}) for x {_shape(x)}, but is {_shape(weight)}"
        )
    _check_like("weight", weight, x)
    N = weight.shape[0]
    if bias is not None:
        _check_floating("bias", bias)
        _check_shape("bias", bias, (N,))
        _check_like("bias", bias, x)
    _check_scan(x, N, u, h0, lengths, cu_seqlens, resets)
    check_options(nonlinearity, grad_clip, grad_clip_mode)
    if lengths is not None:
        # What stands in the padding must not reach the weight's gradient, and 0 * NaN is not 0.
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        x = x.masked_fill(padding[..., None], 0)
    if ops.backend.current == "reference":
        return reference.scan(
            torch.nn.functional.linear(x, weight, bias),
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
    return torch.ops.fastindrnn.indrnn(
        x,
        weight,
        bias,
        u,
        h0,
        _int64(lengths),
        _int64(cu_seqlens),
        resets,
        nonlinearity,
        reverse,
        grad_clip,
        grad_clip_mode,
    )


def _int64(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.int64).contiguous()


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, but is {type(x).__name__}")


def _check_floating(name: str, x: Tensor) -> None:
    _check_tensor(name, x)
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, but is {x.dtype}")


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must be {shape}, but is {_shape(x)}")


def _check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} must be on {device} as the input, but is on {x.device}")


def _check_like(name: str, x: Tensor, input: Tensor) -> None:
    _check_device(name, x, input.device)
    if x.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"{name} must be {input.dtype} as the input, but is {x.dtype}")


def _check_rows(name: str, x: Tensor, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is None and x.dim() != 3:
        raise ValueError(f"{name} must be (batch, time, channels), but is {_shape(x)}")
    if cu_seqlens is not None and x.dim() != 2:
        raise ValueError(f"{name} must be (total, channels) with cu_seqlens, but is {_shape(x)}")


def _check_scan(
    x: Tensor,
    N: int,
    u: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    resets: Tensor | None,
) -> None:
    if lengths is not None and cu_seqlens is not None:
        raise ValueError("lengths and cu_seqlens are two ways to say one thing: give one of them")
    _check_floating("u", u)
    _check_shape("u", u, (N,))
    _check_device("u", u, x.device)
    B, total = x.shape[0], x.shape[-2]
    if cu_seqlens is not None:
        _check_integers("cu_seqlens", cu_seqlens, x.device)
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
            raise ValueError(f"cu_seqlens must be (batch + 1,), but is {_shape(cu_seqlens)}")
        B = cu_seqlens.shape[0] - 1
        if not _hold(cu_seqlens, lambda x: (x[0] == 0) & (x[-1] == total) & (x.diff() >= 0).all()):
            raise ValueError(
                f"cu_seqlens must rise from 0 to {total}, the rows of the input, "
                f"but is {cu_seqlens.tolist()}"
            )
    if lengths is not None:
        check_lengths(lengths, B, total, x.device)
    if h0 is not None:
        _check_floating("h0", h0)
        _check_shape("h0", h0, (B, N))
        _check_device("h0", h0, x.device)
    if resets is not None:
        _check_tensor("resets", resets)
        if resets.dtype != torch.bool:
            raise TypeError(f"resets must be bool, but is {resets.dtype}")
        _check_shape("resets", resets, tuple(x.shape[:-1]))
        _check_device("resets", resets, x.device)
    ops.check_backend(x.device)


def check_lengths(lengths: Tensor, B: int, T: int, device: torch.device) -> None:
    """Raises a TypeError or ValueError unless they are the lengths of B sequences of T steps."""
    _check_integers("lengths", lengths, device)
    _check_shape("lengths", lengths, (B,))
    if not _hold(lengths, lambda x: ((x >= 0) & (x <= T)).all()):
        raise ValueError(
            f"lengths must be from 0 to {T}, the input's time steps, but is {lengths.tolist()}"
        )


def _check_integers(name: str, x: Tensor, device: torch.device) -> None:
    _check_tensor(name, x)
    if x.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name} must be of an integer dtype, but is {x.dtype}")
    _check_device(name, x, device)


def _hold(x: Tensor, condition: Callable[[Tensor], Tensor]) -> bool:
    """Whether the values are right; on a GPU a device-side assertion, so that nothing waits."""
    if torch.compiler.is_compiling() or x.device.type == "meta":
        return True
    if x.device.type == "cpu":
        return bool(condition(x))
    torch._assert_async(condition(x))
    return True


def check_options(nonlinearity: str, grad_clip: float | None, grad_clip_mode: str) -> None:
    """Raises a TypeError or ValueError unless they are as `indrnn_scan` takes them."""
    if not isinstance(nonlinearity, str):
        raise TypeError(f"nonlinearity must be a string, but is {type(nonlinearity).__name__}")
    if nonlinearity not in ACTIVATIONS:
        raise ValueError(
            f"nonlinearity must be one of {', '.join(ACTIVATIONS)}, but is {nonlinearity!r}"
        )
    if grad_clip is not None:
        if isinstance(grad_clip, bool) or not isinstance(grad_clip, (int, float)):
            raise TypeError(
                f"grad_clip must be a number or None, but is {type(grad_clip).__name__}"
            )
        if not grad_clip > 0 or math.isinf(grad_clip):
            raise ValueError(f"grad_clip must be positive and finite, or None, but is {grad_clip}")
    if grad_clip_mode not in ("message", "result"):
        raise ValueError(f"grad_clip_mode must be 'message' or 'result', but is {grad_clip_mode!r}")
