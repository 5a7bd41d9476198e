"""Checks of state dicts and modules, which the loaders share."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Names with values that torch.as_tensor takes: tensors, or NumPy arrays as TensorFlow gives them.
State = Mapping[str, Any]


def check_mapping(name: str, state: State) -> None:
    """Raises a TypeError unless it is a dictionary, as `state_dict` returns one."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{name} must be a dictionary of tensors, as state_dict() returns one, "
            f"but is {type(state).__name__}"
        )


def check_state(state: State, shapes: Mapping[str, tuple[int, ...]], where: str = "state") -> State:
    """The values as tensors; a ValueError unless names and shapes are those of `shapes`."""
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"{where} lacks {key!r}, which must be {shape}")
    checked = {}
    for key, value in state.items():
        checked[key] = torch.as_tensor(value)
        shape = tuple(checked[key].shape)
        if key not in shapes:
            known = ", ".join(shapes) if len(shapes) <= 3 else f"{len(shapes)} names of the module"
            raise ValueError(f"{where} must hold only {known}, but also has {key!r}, {shape}")
        if shape != shapes[key]:
            raise ValueError(f"{where}'s {key!r} must be {shapes[key]}, but is {shape}")
    return checked


@torch.no_grad()
def copy_into(values: State, targets: Mapping[str, Tensor]) -> None:
    """Fills each target with the value of its key."""
    for key, target in targets.items():
        target.copy_(values[key])


def check_nonlinearity(module: nn.Module, *expected: str) -> None:
    """Raises a ValueError unless the module's nonlinearity is one of these."""
    nonlinearity = getattr(module, "nonlinearity", None)
    if nonlinearity not in expected:
        raise ValueError(
            f"module's nonlinearity must be {' or '.join(map(repr, expected))}, "
            f"but is {nonlinearity!r}"
        )


def norms_of(module: nn.Module) -> dict[str, nn.Module]:
    """The norms of the recurrences within a module, by name."""
    names = re.compile(r"(.*\.)?norm(_l\d+(_reverse)?)?")
    return {name: part for name, part in module.named_modules() if names.fullmatch(name)}


def check_eps(module: nn.Module) -> None:
    """Raises a ValueError unless the module's norms have the eps of the other implementations."""
    for name, norm in norms_of(module).items():
        eps = getattr(norm, "eps", None)
        if eps != 1e-5:
            raise ValueError(f"module's norms must have eps=1e-05, but {name} has eps={eps}")
