"""Haste's two layers, with and without layer norm: github.com/lmnt-com/haste."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cell import IndRNNCell
from ..layers import IndRNN
from .layers import check_plain, fill, from_kernels, suffixes, to_kernels
from .states import State, check_eps, check_nonlinearity, copy_into, norms_of

_NAMES = ("kernel", "recurrent_scale", "bias")
_NAMES_WITH_NORM = (*_NAMES, "gamma")


def load_haste(
    module: IndRNN | IndRNNCell, states: State | Sequence[State], *, zoneout: float = 0.0
) -> None:
    """Fills `module` from Haste's `IndRNN` layers, h_t = tanh(x_t W + b + u * h_{t-1}), or its
    `LayerNormIndRNN` layers, h_t = tanh(gamma * normalized(x_t W) + b + u * h_{t-1}); with
    zoneout z at evaluation z * h_{t-1} + (1 - z) * tanh(...).

    Args:
        module: with nonlinearity "tanh" and without norm; for Haste's layer norm with norm="layer",
            norm_position="before" and bias=False, since Haste's b comes after its norm and is the
            bias of ours.
        states: for each layer (and direction) `kernel` (I, H), `recurrent_scale` (H,), `bias`
            (H,), and with layer norm `gamma` (2, H), of which Haste uses the first row; one alone
            for one layer.
        zoneout: the layer's; it must be the module's.

    Raises:
        TypeError, ValueError: a name is missing, unknown, or its shape wrong; zoneout differs; the
            module does not fit.

    Source: github.com/lmnt-com/haste.
    """
    has_norm = _has_norm(module, zoneout)
    values = from_kernels(module, states, _NAMES_WITH_NORM if has_norm else _NAMES)
    layers = [(weight, None if has_norm else bias, u) for weight, u, bias, *_ in values]
    fill(module, layers, [f"states[{i}]" for i in range(len(layers))])
    if has_norm:
        for norm, (_, _, bias, gamma) in zip(_norms(module), values, strict=True):
            copy_into({"weight": gamma[0], "bias": bias}, norm)


def to_haste(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """`kernel`, `recurrent_scale` and `bias` of each layer (and direction), with layer norm also
    `gamma`, whose second row Haste does not use. Its zoneout is the module's.

    Args:
        module: as `load_haste` takes it, whose inverse this is.

    Returns:
        For each layer and direction a dictionary, as `load_haste` takes them.

    Raises:
        TypeError, ValueError: the module does not fit.

    Source: github.com/lmnt-com/haste.
    """
    zoneout = getattr(module, "zoneout", 0.0)
    has_norm = _has_norm(module, zoneout)
    states = to_kernels(module, _NAMES)
    if has_norm:
        for state, norm in zip(states, _norms(module), strict=True):
            state["bias"] = norm["bias"].clone()
            state["gamma"] = torch.stack([norm["weight"], torch.ones_like(norm["weight"])])
    return states


def _has_norm(module: IndRNN | IndRNNCell, zoneout: float) -> bool:
    """Whether a module that fits one of Haste's two layers has layer norm; an error if it fits
    neither."""
    norms = list(norms_of(module).values()) if isinstance(module, nn.Module) else []
    has_norm = bool(norms) and all(isinstance(norm, nn.LayerNorm) for norm in norms)
    check_plain(module, zoneout, has_norm)
    check_nonlinearity(module, "tanh")
    check_eps(module)
    if has_norm and (module.norm_position != "before" or module.bias):
        raise ValueError(
            "module with layer norm must have norm_position='before' and bias=False, "
            f"but has norm_position={module.norm_position!r} and bias={module.bias}"
        )
    return has_norm


def _norms(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """Weight and bias of the norm of each layer and direction, without gradients."""
    state = module.state_dict()
    return [
        {name: state[f"norm{end}.{name}"] for name in ("weight", "bias")}
        for end in suffixes(module)
    ]
