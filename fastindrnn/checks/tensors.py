"""Tensors: their types, shapes and devices, and the values of lengths and cu_seqlens."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ..options import Extents, Parameters

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises a TypeError or ValueError unless parameters can be of it."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or None, but is {type(dtype).__name__}")
    if dtype not in FLOATING:
        raise ValueError(f"dtype must be float32, float64, bfloat16 or float16, but is {dtype}")


def check_step(x_t: Tensor, features: int) -> None:
    """Raises a TypeError or ValueError unless it is the input of a step."""
    if not isinstance(x_t, Tensor):
        raise TypeError(f"x_t must be a tensor, but is {type(x_t).__name__}")
    if x_t.dim() not in (1, 2) or x_t.shape[-1] != features:
        raise ValueError(
            f"x_t must be (batch, {features}) or ({features},), but is {tuple(x_t.shape)}"
        )


def check_input(name: str, x: Tensor, extents: Extents) -> None:
    """Raises a TypeError or ValueError unless x is a batch of sequences with these extents."""
    check_floating(name, x)
    cu_seqlens = extents.cu_seqlens
    if cu_seqlens is None and x.dim() != 3:
        raise ValueError(f"{name} must be (batch, time, channels), but is {_shape(x)}")
    if cu_seqlens is not None and x.dim() != 2:
        raise ValueError(f"{name} must be (total, channels) with cu_seqlens, but is {_shape(x)}")
    if extents.lengths is not None and cu_seqlens is not None:
        raise ValueError("lengths and cu_seqlens are two ways to say one thing: give one of them")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, x.shape[0], x.device)
    if extents.lengths is not None:
        check_lengths(extents.lengths, x.shape[0], x.shape[1], x.device)
    if extents.resets is not None:
        check_resets(extents.resets, x.shape[:-1], x.device)


def check_recurrence(x: Tensor, N: int, u: Tensor, h0: Tensor | None, extents: Extents) -> None:
    """Raises a TypeError or ValueError unless u and h0 are those of N neurons, for the sequences
    x."""
    check_floating("u", u)
    _check_shape("u", u, (N,))
    _check_device("u", u, x.device)
    if h0 is not None:
        check_floating("h0", h0)
        _check_shape("h0", h0, (extents.batch_size(x), N))
        _check_device("h0", h0, x.device)


def check_layer(x: Tensor, parameters: Parameters, h0: Tensor | None, extents: Extents) -> None:
    """Raises a TypeError or ValueError unless they are those of a layer on x, which is a batch of
    sequences."""
    weight, bias, u = parameters.weight, parameters.bias, parameters.u
    if extents.cu_seqlens is None and _is_plain_layer(x, weight, bias, u, h0):
        return
    check_floating("input", x)
    check_floating("weight", weight)
    assert weight is not None
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be (hidden, {x.shape[-1]}) for x {_shape(x)}, but is {_shape(weight)}"
        )
    check_like("weight", weight, x)
    N = weight.shape[0]
    if bias is not None:
        check_floating("bias", bias)
        _check_shape("bias", bias, (N,))
        check_like("bias", bias, x)
    check_recurrence(x, N, u, h0, extents)


def _is_plain_layer(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, u: Tensor, h0: Tensor | None
) -> bool:
    """Whether everything is as it mostly is. The checks one by one take as long as a time step."""
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


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, but is {type(x).__name__}")


def check_state(name: str, state: Tensor, device: torch.device) -> None:
    """Raises a TypeError or ValueError unless the state that a caller gives is a tensor of numbers
    on the input's device."""
    if isinstance(state, tuple):
        raise TypeError(
            f"{name} must be a tensor, but is tuple: there is no c as in an LSTM, pass h alone"
        )
    check_floating(name, state)
    _check_device(name, state, device)


def check_floating(name: str, x: Any) -> None:
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


def check_like(name: str, x: Tensor, input: Tensor) -> None:
    """Raises a TypeError or ValueError unless a parameter is of the input's device and, without
    autocast, dtype."""
    if x.device != input.device:
        raise ValueError(
            f"{name} must be on {input.device} as the input, but is on {x.device}: "
            f"take input.to({str(x.device)!r}), or move the module"
        )
    if x.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(
            f"{name} must be {input.dtype} as the input, but is {x.dtype}: "
            f"take input.to({x.dtype}), or convert the module"
        )


def _check_cu_seqlens(cu_seqlens: Tensor, total: int, device: torch.device) -> None:
    _check_integers("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (batch + 1,), but is {_shape(cu_seqlens)}")
    if not _hold(cu_seqlens, lambda x: (x[0] == 0) & (x[-1] == total) & (x.diff() >= 0).all()):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {total}, the time steps of the input, "
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
    if lengths.shape != (B,):
        raise ValueError(
            f"lengths must be ({B},), but is {_shape(lengths)}: one for each sequence of the batch"
        )
    if not _hold(lengths, lambda x: ((x >= 0) & (x <= T)).all()):
        low, high = lengths.aminmax()
        given = lengths.tolist() if B <= 10 else f"from {low.item()} to {high.item()}"
        raise ValueError(f"lengths must be from 0 to {T}, the input's time steps, but is {given}")


def _check_integers(name: str, x: Tensor, device: torch.device) -> None:
    if isinstance(x, (list, tuple)):
        raise TypeError(
            f"{name} must be a tensor, but is {type(x).__name__}: take torch.tensor({name})"
        )
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
