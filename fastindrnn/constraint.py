"""Keeping |u| in bounds, so that no state grows without end. Never done silently inside a
forward."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def recurrent_max_for(T: int, gamma: float = 2.0) -> float:
    """gamma^(1/T): the |u| with which a state grows by `gamma` at most over T steps. Li et al.
    2018, section 3.2.

    Raises:
        ValueError: T < 1, or gamma not positive.
    """
    if T < 1 or not gamma > 0:
        raise ValueError(f"T must be at least 1 and gamma positive, but they are {T} and {gamma}")
    return gamma ** (1 / T)


@torch.no_grad()
def constrain_(module: nn.Module) -> None:
    """Clamps u to [-recurrent_max, recurrent_max], in place, in every layer within `module` that
    has a bound."""
    for part in module.modules():
        bound = getattr(part, "recurrent_max", None)
        if bound is not None:
            for name, parameter in part.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    parameter.clamp_(-bound, bound)


def constrain_after_step(optimizer: torch.optim.Optimizer, module: nn.Module) -> RemovableHandle:
    """Calls `constrain_(module)` after every step of `optimizer`. Returns a handle whose `remove()`
    ends it."""
    return optimizer.register_step_post_hook(lambda *_: constrain_(module))
