"""Keeping |u| in bounds, so that no state grows without end. Never done silently inside a
forward."""

import math
from numbers import Integral, Real

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .checks import check_module


def recurrent_max_for(T: int | None, gamma: float = 2.0) -> float:
    """gamma^(1/T): the |u| with which a state grows at most `gamma`-fold over T steps.

    Args:
        T: the steps that a state lives: of the longest sequence, or of all chunks together where
            one starts from the state that another one ended in. None for a stream without an end,
            whose bound is 1: with any larger one its states grow until they overflow. At 1 a neuron
            can still add up its inputs for as long as the stream is; for training on streams and
            long texts 0.99 is the better bound, above all with batch norm.
        gamma: the growth, positive and finite.

    Returns:
        A bound of |u|, for the argument `recurrent_max` of a layer.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831, section 3.2.
    """
    if T is not None and (isinstance(T, bool) or not isinstance(T, Integral)):
        raise TypeError(f"T must be an int or None, but is {type(T).__name__}")
    if isinstance(gamma, bool) or not isinstance(gamma, Real):
        raise TypeError(f"gamma must be a float, but is {type(gamma).__name__}")
    if T is not None and T < 1:
        raise ValueError(f"T must be at least 1, but is {T}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be positive and finite, but is {gamma}")
    return 1.0 if T is None else gamma ** (1 / T)


@torch.no_grad()
def constrain_(module: nn.Module) -> None:
    """Clamps u to [-recurrent_max, recurrent_max], in place, in every layer within `module` that
    has a bound.

    Args:
        module: with any layers in it.

    Raises:
        TypeError: `module` is no module.
        ValueError: no layer within it has a bound, or the u of one is parametrized
            (`torch.nn.utils.parametrize`), so that there is no tensor to clamp.
    """
    for u, bound in _bounded(module):
        u.clamp_(-bound, bound)


def constrain_after_step(optimizer: torch.optim.Optimizer, module: nn.Module) -> RemovableHandle:
    """Calls `constrain_(module)` after every step of `optimizer`.

    Args:
        optimizer: of the module's parameters.
        module: with layers that have a bound (`recurrent_max`).

    Returns:
        A handle whose `remove()` ends it.

    Raises:
        TypeError: the arguments are not an optimizer and a module.
        ValueError: as in `constrain_`, and where `optimizer` holds none of the u that have a bound.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, but is {type(optimizer).__name__}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(u) in held for u, _ in _bounded(module)):
        raise ValueError(
            "optimizer holds no recurrent weight of the module that has a bound: "
            "is it the optimizer of another one?"
        )
    return optimizer.register_step_post_hook(lambda *_: constrain_(module))


def _bounded(module: nn.Module) -> list[tuple[nn.Parameter, float]]:
    """Each u within the module that has a bound, and the bound."""
    check_module(module)
    found = []
    for part in module.modules():
        bound = getattr(part, "recurrent_max", None)
        if bound is None:
            continue
        for name in getattr(part, "parametrizations", ()):
            if name.startswith("weight_hh"):
                raise ValueError(f"{name} is parametrized: bound it in its parametrization")
        for name, parameter in part.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                found.append((parameter, bound))
    if not found:
        raise ValueError(
            "module has no layer with a bound of its recurrent weights: give one recurrent_max"
        )
    return found
