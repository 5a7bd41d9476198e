"""What `torch.utils.flop_counter` counts for the operators.

A product of (M, K) and (K, N) counts 2 * M * K * N, as everywhere in PyTorch. The recurrence
counts 2 for each element of h, for its multiplication and addition, and its gradient 4: those of
d_t = g_t + u * d_{t+1}, and of the sum of d_t * h_{t-1}. Clamps, masks, biases and the sums of
their gradients are not counted, as PyTorch counts nothing that goes element by element. The
gradients of a layer's input and weight are products of PyTorch's own, and counted by it. So is the
product of a single time step that PyTorch's own operations compute (see `fastindrnn.plan`), whose
recurrence is then one operation that goes element by element, and not counted.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from math import prod
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


def _scan(a, *_, **__):
    return 2 * prod(a)


def _scan_backward(grad_h, *_, **__):
    return 4 * prod(grad_h)


def _indrnn(x, weight, *_, **__):
    N, K = weight
    return prod(x[:-1]) * N * (2 * K + 2)


def _stack(x, weights, *_, **__):
    return sum(_indrnn(x, weight) for weight in weights)


def _projected_backward(grad_next, weight_next, *_, **__):
    M, N = weight_next
    return prod(grad_next[:-1]) * N * (2 * M + 4)


_FORMULAS: dict[str, Callable[..., int]] = {
    "scan": _scan,
    "scan_backward": _scan_backward,
    "indrnn": _indrnn,
    "stack": _stack,
    "projected_backward": _projected_backward,
}


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for name, formula in _FORMULAS.items():
        register_flop_formula(getattr(torch.ops.fastindrnn, name))(formula)


class _OnImport(MetaPathFinder):
    """Registers the formulas when PyTorch's counter is imported for the first time. Asking where
    the counter's module lies, as `importlib.util.find_spec` does, registers nothing."""

    is_looking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != _COUNTER or self.is_looking:
            return None
        self.is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_looking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                _register()
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_counted() -> None:
    """Registers the formulas with PyTorch's counter, now or when the program imports the counter.
    It is not imported here: it imports Triton, which takes a second, and which must not be imported
    before TRITON_INTERPRET is set."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _OnImport())
