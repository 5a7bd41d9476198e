"""Initial values of the recurrent weights u.

Each function fills its tensor in place and returns it, as those of `torch.nn.init` do.
"""

import math
from numbers import Integral, Real

import torch
from torch import Tensor


@torch.no_grad()
def uniform_(u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draws u from U(low, high): the papers' choice for every layer, with `high` the bound of |u|.

    Args:
        u: the tensor to fill.
        low: the least value.
        high: the greatest value, at least `low`.

    Returns:
        u.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831, section 4.
    """
    _check_u(u)
    _check_numbers(low=low, high=high)
    if low > high:
        raise ValueError(f"low must be at most high, but they are {low} and {high}")
    return u.uniform_(low, high)


@torch.no_grad()
def long_memory_(u: Tensor, T: int, gamma: float = 2.0) -> Tensor:
    """Draws u from U(gamma^(-1/T), gamma^(1/T)): over T steps a state neither fades below 1/gamma
    nor grows beyond gamma.

    It is for the last layer where only the last state is used (many to one).

    Args:
        u: the tensor to fill.
        T: the time steps of the longest sequence.
        gamma: the growth over T steps, at least 1.

    Returns:
        u.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831, section 4.
    """
    _check_u(u)
    if isinstance(T, bool) or not isinstance(T, Integral):
        raise TypeError(f"T must be an int, but is {type(T).__name__}")
    _check_numbers(gamma=gamma)
    if T < 1 or gamma < 1:
        raise ValueError(f"T and gamma must be at least 1, but are {T} and {gamma}")
    return u.uniform_(gamma ** (-1 / T), gamma ** (1 / T))


@torch.no_grad()
def identity_(u: Tensor, scale: float = 1.0) -> Tensor:
    """Sets u to `scale`: with 1 the IRNN, with 0.01 its form for short memory.

    Args:
        u: the tensor to fill.
        scale: the value.

    Returns:
        u.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Le et al. 2015, arXiv 1504.00941.
    """
    _check_u(u)
    _check_numbers(scale=scale)
    return u.fill_(scale)


@torch.no_grad()
def normal_(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draws u from N(mean, std^2).

    Args:
        u: the tensor to fill.
        mean: the mean.
        std: the standard deviation, at least 0.

    Returns:
        u.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    _check_u(u)
    _check_numbers(mean=mean, std=std)
    if std < 0:
        raise ValueError(f"std must be at least 0, but is {std}")
    return u.normal_(mean, std)


def _check_u(u: Tensor) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"u must be a tensor, but is {type(u).__name__}")
    if not u.is_floating_point():
        raise TypeError(f"u must be of a floating dtype, but is {u.dtype}")


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, but is {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but is {value}")
