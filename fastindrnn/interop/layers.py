"""The weights of a layer: projections and recurrent vectors, in and out; what the loaders share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..cell import IndRNNCell
from ..layers import IndRNN
from .states import State, check_mapping, check_state, copy_into, norms_of


def load_layers(module: IndRNN | IndRNNCell, layers: Sequence[tuple[Any, Any | None, Any]]) -> None:
    """Fills the layers of `module` with projections and recurrent vectors from anywhere.

    Args:
        module: an `IndRNN` without norm and zoneout, or an `IndRNNCell`.
        layers: for each layer, and within it for each direction, W (H, K) as `nn.Linear.weight`, b
            (H,) or None for zeros, u (H,).

    Raises:
        TypeError, ValueError: a part does not fit; a bias is not 0 and the module has none.
    """
    check_plain(module)
    if not isinstance(layers, Sequence) or not all(
        isinstance(layer, tuple) and len(layer) == 3 for layer in layers
    ):
        raise TypeError(
            f"layers must be a list of tuples (weight, bias, u), but is {_kinds(layers)}"
        )
    fill(module, layers, [f"layers[{i}]" for i in range(len(layers))])


def check_plain(module: nn.Module, zoneout: float = 0.0, takes_norm: bool = False) -> None:
    """Raises a TypeError or ValueError unless it is a layer or cell with this zoneout, and without
    a norm where it takes none."""
    if not isinstance(module, IndRNN | IndRNNCell):
        raise TypeError(f"module must be an IndRNN or IndRNNCell, but is {type(module).__name__}")
    if not takes_norm and norms_of(module):
        raise ValueError(f"module must have no norm, but has norm={module.norm!r}")
    ours = getattr(module, "zoneout", 0.0)
    if ours != zoneout:
        raise ValueError(f"module's zoneout must be {zoneout}, but is {ours}")


def suffixes(module: IndRNN | IndRNNCell) -> list[str]:
    """How the names of each layer's and direction's parameters end, in the order of h_n."""
    names = [name for name, _ in module.named_parameters() if name.startswith("weight_hh")]
    return [name.removeprefix("weight_hh") for name in names]


def layers_of(module: IndRNN | IndRNNCell) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Weight, bias and u of each layer and direction, in the order of h_n, without gradients."""
    state = module.state_dict()
    return [
        (state[f"weight_ih{end}"], state.get(f"bias_ih{end}"), state[f"weight_hh{end}"])
        for end in suffixes(module)
    ]


def fill(
    module: IndRNN | IndRNNCell, layers: Sequence[tuple[Any, Any | None, Any]], names: list[str]
) -> None:
    """As `load_layers`, of a module that is checked; errors name the layers as `names` says."""
    ours = layers_of(module)
    if len(layers) != len(ours):
        raise ValueError(f"layers must be {len(ours)}, as in the module, but are {len(layers)}")
    checked = []
    for (weight, bias, u), (w, b, v), name in zip(layers, ours, names, strict=True):
        parts = {"weight": w, "u": v} | ({} if b is None else {"bias": b})
        given = {"weight": weight, "u": u}
        if b is not None:
            given["bias"] = torch.zeros_like(b) if bias is None else bias
        elif bias is not None and torch.as_tensor(bias).any():
            raise ValueError(f"{name}'s bias must be 0 for a module with bias=False, but is not")
        shapes = {key: tuple(value.shape) for key, value in parts.items()}
        checked.append((check_state(given, shapes, name), parts))
    for values, parts in checked:
        copy_into(values, parts)


def from_kernels(
    module: IndRNN | IndRNNCell, states: State | Sequence[State], names: Sequence[str]
) -> list[list[Tensor]]:
    """For each layer and direction the values of `names`: W (H, I), of which the state has the
    transposed kernel; u (H,); a bias (H,); and, if there is a fourth name, (2, H)."""
    if isinstance(states, Mapping):
        states = [states]
    if not isinstance(states, Sequence) or isinstance(states, str):
        raise TypeError(
            f"states must be a dictionary or a list of them, but is {type(states).__name__}"
        )
    ours = layers_of(module)
    if len(states) != len(ours):
        raise ValueError(
            f"states must hold {len(ours)} dictionaries, one for each layer and direction, "
            f"but hold {len(states)}"
        )
    layers = []
    for i, (state, (weight, _, u)) in enumerate(zip(states, ours, strict=True)):
        check_mapping(f"states[{i}]", state)
        # TensorFlow's names: a scope with slashes before, ":0" behind.
        bare = {key.rsplit("/", 1)[-1].split(":")[0]: value for key, value in state.items()}
        if len(bare) < len(state):
            raise ValueError(f"states[{i}] must be of one layer, but has one name in two scopes")
        vector = tuple(u.shape)
        known = [tuple(weight.T.shape), vector, vector, (2, *vector)]
        shapes = dict(zip(names, known[: len(names)], strict=True))
        values = check_state(bare, shapes, f"states[{i}]")
        kernel, *others = (values[name] for name in names)
        layers.append([rearrange(kernel, "inputs hidden -> hidden inputs"), *others])
    return layers


def to_kernels(module: IndRNN | IndRNNCell, names: tuple[str, str, str]) -> list[dict[str, Tensor]]:
    """For each layer and direction copies of kernel (I, H), u (H,) and bias (H,) by these names."""
    states = []
    for weight, bias, u in layers_of(module):
        kernel = rearrange(weight, "hidden inputs -> inputs hidden")
        kernel = kernel.clone(memory_format=torch.contiguous_format)
        parts = kernel, u.clone(), torch.zeros_like(u) if bias is None else bias.clone()
        states.append(dict(zip(names, parts, strict=True)))
    return states


def _kinds(layers: Any) -> str:
    """What somebody gave for `layers`, in a few words."""
    if isinstance(layers, Sequence):
        return f"a {type(layers).__name__} of {', '.join(type(each).__name__ for each in layers)}"
    return type(layers).__name__
