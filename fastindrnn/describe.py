"""What a layer's representation says of its arguments."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def describe_arguments(kind: type, module: nn.Module, recorded: Mapping[str, Any]) -> str:
    """The arguments of `kind` that are not what they are by default, as one writes them, for
    `extra_repr`: as recorded, the others as attributes of the module. Device and dtype are those of
    the parameters, which may have been moved."""
    written = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype"):
            continue
        value = recorded[name] if name in recorded else getattr(module, name)
        if parameter.default is parameter.empty:
            written.append(_as_written(value))
        elif value != parameter.default:
            written.append(f"{name}={_as_written(value)}")
    return ", ".join(written)


def _as_written(value: Any) -> str:
    """The value's representation; of functions the name, also within partials and sequences."""
    if isinstance(value, functools.partial):
        given = [_as_written(each) for each in (value.func, *value.args)]
        given += [f"{name}={_as_written(each)}" for name, each in value.keywords.items()]
        return f"partial({', '.join(given)})"
    if isinstance(value, list | tuple):
        items = ", ".join(map(_as_written, value))
        if isinstance(value, list):
            return f"[{items}]"
        return f"({items},)" if len(value) == 1 else f"({items})"
    return getattr(value, "__name__", None) or repr(value)
