"""Transforms of PyTorch that cannot look into the operators, and would compute something wrong or
fail in words of their own."""

from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Private to PyTorch: where it is gone, every call is asked about.
_has_transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Raises a NotImplementedError under forward-mode differentiation, in which PyTorch would take
    the operators for constants without a word."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "IndRNN has no forward-mode derivative (torch.func.jvp, jacfwd); reverse mode works"
            )


def refuse_gradient_transforms(*tensors: Tensor | None) -> None:
    """Raises a NotImplementedError where torch.func.grad or its like is to differentiate by one of
    the tensors, which PyTorch cannot do with operators written in Python, in words of its own."""
    if torch.compiler.is_compiling() or not _has_transforms() or not torch.is_grad_enabled():
        return
    levels = torch._C._functorch.get_interpreter_stack() or ()
    has_gradient = any(level.key() == torch._C._functorch.TransformType.Grad for level in levels)
    if has_gradient and any(x is not None and _is_differentiated(x) for x in tensors):
        raise NotImplementedError(
            "IndRNN's kernels cannot be differentiated by torch.func (grad, vjp, jacrev): take "
            "torch.autograd.grad, for many models at once around torch.vmap, or the backend "
            "'reference' (with fastindrnn.backend('reference'): ...)"
        )


def _is_differentiated(x: Tensor) -> bool:
    """At any of the levels of transforms around x."""
    while not x.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def refuse_script(module: nn.Module) -> NoReturn:
    """Raises a NotImplementedError that says what to do: `torch.jit.script` knows neither our
    arguments that are given by name nor packed sequences."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}: use torch.compile, or "
        "torch.export for a program without Python"
    )
