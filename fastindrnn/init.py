"""Initial values of the recurrent weights u. Each fills its tensor in place and returns it, as
`torch.nn.init`."""

import torch
from torch import Tensor


@torch.no_grad()
def uniform_(u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """u ~ U(low, high): the papers' choice for every layer, with `high` the bound of |u|. Li et al.
    2018, section 4."""
    return u.uniform_(low, high)


@torch.no_grad()
def long_memory_(u: Tensor, T: int, gamma: float = 2.0) -> Tensor:
    """u ~ U(gamma^(-1/T), gamma^(1/T)): over T steps a state neither fades below 1/gamma nor grows
    beyond gamma.

    For the last layer where only the last state is used (many to one). Li et al. 2018, section 4.
    """
    if T < 1 or gamma < 1:
        raise ValueError(f"T and gamma must be at least 1, but are {T} and {gamma}")
    return u.uniform_(gamma ** (-1 / T), gamma ** (1 / T))


@torch.no_grad()
def identity_(u: Tensor, scale: float = 1.0) -> Tensor:
    """u = scale: with 1 the IRNN, with 0.01 its form for short memory. Le et al. 2015, arXiv
    1504.00941."""
    return u.fill_(scale)


@torch.no_grad()
def normal_(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """u ~ N(mean, std^2)."""
    return u.normal_(mean, std)
