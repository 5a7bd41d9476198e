"""Modules, sizes, numbers, flags and names: what functions are given beside tensors."""

import math
from typing import get_args

from torch import nn

from ..options import Direction, GradClipMode, Nonlinearity, Strategy


def check_module(module: nn.Module) -> None:
    """Raises a TypeError unless it is one."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a Module, but is {type(module).__name__}")


def check_bools(**values: object) -> None:
    """Raises a TypeError unless each is one."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, but is {type(value).__name__}")


def check_sizes(**sizes: int) -> None:
    """Raises a TypeError or ValueError unless each is a positive int."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int, but is {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be positive, but is {size}")


def check_number(name: str, value: float) -> None:
    """Raises a TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but is {type(value).__name__}")


def check_probabilities(**probabilities: float) -> None:
    """Raises a TypeError or ValueError unless each is a probability."""
    for name, value in probabilities.items():
        check_number(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability from 0 to 1, but is {value}")


def check_recurrent_max(recurrent_max: float | None) -> None:
    """Raises a TypeError or ValueError unless it is a bound or None."""
    if recurrent_max is None:
        return
    check_number("recurrent_max", recurrent_max)
    if not (recurrent_max > 0 and math.isfinite(recurrent_max)):
        raise ValueError(
            f"recurrent_max must be positive and finite, or None, but is {recurrent_max}"
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
        raise ValueError(
            f"grad_clip_mode must be 'per_step' or 'result', but is {grad_clip_mode!r}"
        )
    if not isinstance(strategy, str):
        raise TypeError(f"strategy must be a string, but is {type(strategy).__name__}")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be 'auto', 'fused' or 'split', but is {strategy!r}")
    if strategy == "fused" and grad_clip is not None and grad_clip_mode == "result":
        raise ValueError(
            "strategy must be 'auto' or 'split' with grad_clip_mode='result', which clips the "
            "gradient of W x + b, but is 'fused', where W x + b is no tensor"
        )


def check_direction(direction: str, channels: int) -> None:
    """Raises a TypeError or ValueError unless it is a direction that so many channels can take."""
    if not isinstance(direction, str):
        raise TypeError(f"direction must be a string, but is {type(direction).__name__}")
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be 'forward', 'reverse' or 'both', but is {direction!r}")
    if direction == "both" and channels % 2:
        raise ValueError(
            f"direction 'both' needs as many channels forwards as in reverse, but has {channels}"
        )
