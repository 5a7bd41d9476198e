"""What an optimiser is given: which parameters decay."""

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .checks import check_module, check_number

# Norms whose scale and shift may be matrices; those of others are vectors.
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of `module` in two groups for a `torch.optim` optimiser: with weight decay,
    and without.

    Without are the recurrent vectors u, biases, the scale and shift of norms, and any other vector:
    decay would pull u, which is the network's memory, towards 0. Matrices decay, also the
    recurrent one of an `nn.RNN`. Li et al. 2019, arXiv 1910.06251, and the authors' code.

    Args:
        module: with any layers in it, not only this package's.
        weight_decay: of the first group, at least 0.

    Returns:
        Two dictionaries with the keys "params" and "weight_decay", whose weight decay is
        `weight_decay` and 0; each parameter is in one of them, once.

    Raises:
        TypeError: module is no module, or weight_decay no number.
        ValueError: weight_decay is negative or not finite.

    Example:
        >>> rnn = IndRNN(10, 20, norm="batch")
        >>> optimizer = torch.optim.Adam(parameter_groups(rnn, 1e-4), lr=2e-4)
    """
    check_module(module)
    check_number("weight_decay", weight_decay)
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, but is {weight_decay}")
    if math.isinf(weight_decay):
        raise ValueError("weight_decay must be finite, but is inf")
    norms = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, _NORMS)
        for parameter in part.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in module.parameters():  # a shared one comes once
        is_matrix = parameter.dim() > 1 and id(parameter) not in norms
        (decayed if is_matrix else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
