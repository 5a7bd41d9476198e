"""What the functions and layers ask of their arguments: one clear error each, raised before
anything is computed."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

Nonlinearity = Literal["relu", "identity", "hardtanh", "relu6", "tanh"]
GradClipMode = Literal["message", "result"]
Strategy = Literal["auto", "fused", "split"]
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_bools(**values: object) -> None:
    """Raises a TypeError unless each is one."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, but is {type(value).__name__}")


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Raises a NotImplementedError under forward-mode differentiation, in which PyTorch would take
    the operators for constants without a word."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "IndRNN has no forward-mode derivative (torch.func.jvp, jacfwd); reverse mode works"
            )


def check_options(
    nonlinearity: str, grad_clip: float | None, grad_clip_mode: str, strategy: str = "auto"
) -> None:
    """Raises a TypeError or ValueError unless they are as `functional.indrnn` takes them."""
    if not isinstance(nonlinearity, str):
        raise TypeError(f"nonlinearity must be a string, but is {type(nonlinearity).__name__}")
    if nonlinearity not in get_args(Nonlinearity):
        raise ValueError(
            f"nonlinearity must be one of {', '.join(get_args(Nonlinearity))}, "
            f"but is {nonlinearity!r}"
        )
    if grad_clip is not None:
        if isinstance(grad_clip, bool) or not isinstance(grad_clip, (int, float)):
            raise TypeError(
                f"grad_clip must be a number or None, but is {type(grad_clip).__name__}"
            )
        if not grad_clip > 0 or math.isinf(grad_clip):
            raise ValueError(f"grad_clip must be positive and finite, or None, but is {grad_clip}")
    if grad_clip_mode not in get_args(GradClipMode):
        raise ValueError(f"grad_clip_mode must be 'message' or 'result', but is {grad_clip_mode!r}")
    if not isinstance(strategy, str):
        raise TypeError(f"strategy must be a string, but is {type(strategy).__name__}")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be 'auto', 'fused' or 'split', but is {strategy!r}")
    if strategy == "fused" and grad_clip is not None and grad_clip_mode == "result":
        raise ValueError(
            "strategy must be 'auto' or 'split' with grad_clip_mode='result', which clips the "
            "gradient of W x + b, but is 'fused', where W x + b is no tensor"
        )


def check_rows(
    name: str, x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None, resets: Tensor | None
) -> None:
    """Raises a TypeError or ValueError unless x are rows of numbers and the others fit them."""
    check_floating(name, x)
    if cu_seqlens is None and x.dim() != 3:
        raise ValueError(f"{name} must be (batch, time, channels), but is {_shape(x)}")
    if cu_seqlens is not None and x.dim() != 2:
        raise ValueError(f"{name} must be (total, channels) with cu_seqlens, but is {_shape(x)}")
    if lengths is not None and cu_seqlens is not None:
        raise ValueError("lengths and cu_seqlens are two ways to say one thing: give one of them")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, x.shape[0], x.device)
    if lengths is not None:
        check_lengths(lengths, x.shape[0], x.shape[1], x.device)
    if resets is not None:
        check_resets(resets, x.shape[:-1], x.device)


def check_recurrence(
    x: Tensor, N: int, u: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    """Raises a TypeError or ValueError unless u and h0 are those of N neurons, for the sequences of
    rows x."""
    check_floating("u", u)
    _check_shape("u", u, (N,))
    _check_device("u", u, x.device)
    if h0 is not None:
        B = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        check_floating("h0", h0)
        _check_shape("h0", h0, (B, N))
        _check_device("h0", h0, x.device)


def check_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    """Raises a TypeError or ValueError unless they are those of a layer on rows x, which are
    rows."""
    if cu_seqlens is None and _is_plain_layer(x, weight, bias, u, h0):
        return
    check_floating("input", x)
    check_floating("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be (hidden, {x.shape[-1]}) for x {_shape(x)}, but is {_shape(weight)}"
        )
    _check_like("weight", weight, x)
    N = weight.shape[0]
    if bias is not None:
        check_floating("bias", bias)
        _check_shape("bias", bias, (N,))
        _check_like("bias", bias, x)
    check_recurrence(x, N, u, h0, cu_seqlens)


def _is_plain_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, h0: Tensor | None
) -> bool:
    """Whether all is as it mostly is: one question, for a step takes no longer than the rest."""
    dtype, device = x.dtype, x.device
    if dtype not in FLOATING:
        return False
    for tensor in (weight, u, bias, h0):
        if tensor is not None and (
            not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.device != device
        ):
            return False
    if weight is None or u is None or weight.dim() != 2:
        return False
    B, _, K = x.shape
    N = weight.shape[0]
    return (
        weight.shape[1] == K
        and u.shape == (N,)
        and (bias is None or bias.shape == (N,))
        and (h0 is None or h0.shape == (B, N))
    )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, but is {type(x).__name__}")


def check_state(name: str, state: Tensor) -> None:
    """Raises a TypeError unless the state that a caller gives is a tensor."""
    if isinstance(state, tuple):
        raise TypeError(
            f"{name} must be a tensor, but is tuple: there is no c as in an LSTM, pass h alone"
        )
    _check_tensor(name, state)


def check_floating(name: str, x: Tensor) -> None:
    """Raises a TypeError unless it is a tensor of a dtype that the recurrence computes with."""
    _check_tensor(name, x)
    if x.dtype not in FLOATING:
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


def _check_cu_seqlens(cu_seqlens: Tensor, total: int, device: torch.device) -> None:
    _check_integers("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (batch + 1,), but is {_shape(cu_seqlens)}")
    if not _hold(cu_seqlens, lambda x: (x[0] == 0) & (x[-1] == total) & (x.diff() >= 0).all()):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {total}, the rows of the input, "
            f"but is {cu_seqlens.tolist()}"
        )


def check_resets(resets: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raises a TypeError or ValueError unless they are booleans of this shape."""
    _check_tensor("resets", resets)
    if resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, but is {resets.dtype}")
    _check_shape("resets", resets, tuple(shape))
    _check_device("resets", resets, device)


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
    if torch.compiler.is_compiling() or x.device.type == "meta" or isinstance(x, FakeTensor):
        return True
    if x.device.type == "cpu":
        return bool(condition(x))
    torch._assert_async(condition(x))
    return True
