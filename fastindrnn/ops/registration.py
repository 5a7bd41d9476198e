"""How an operator is made known to PyTorch. Here alone the flat arguments of a schema become the
records again that all other functions take."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..options import Extents, Recurrence

OPTIONS = (
    "Tensor? lengths, Tensor? cu_seqlens, Tensor? resets, "
    "str nonlinearity, str direction, float? grad_clip"
)
NO_GRADIENTS = (None,) * len(OPTIONS.split(","))
"""What a gradient formula returns for them."""

library = torch.library.Library("fastindrnn", "DEF")


class Operator:
    """An operator `fastindrnn::NAME` with the arguments `tensors`, OPTIONS and `more`.

    Every function that is registered for it takes `tensors` one by one, then `Extents`, then
    `Recurrence`, then `more`.
    """

    def __init__(self, name: str, tensors: str, results: str, more: str = "") -> None:
        self.name, self.count = f"fastindrnn::{name}", len(tensors.split(","))
        more = f", {more}" if more else ""
        schema = f"{name}({tensors}, {OPTIONS}{more}) -> {results}"
        library.define(schema, tags=[torch.Tag.pt2_compliant_tag])

    def _records(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        options = arguments[self.count :]
        lengths, cu_seqlens, resets, nonlinearity, direction, grad_clip, *more = options
        extents = Extents(lengths, cu_seqlens, resets)
        recurrence = Recurrence(nonlinearity, direction, grad_clip)
        return *arguments[: self.count], extents, recurrence, *more

    def register(self, run: Callable, fake: Callable, vmap: Callable) -> None:
        """The operator's functions.

        Args:
            run: computes the results.
            fake: makes fake tensors in the form of the results.
            vmap: computes the results for a batch of models, as vmap(size, tensors, dims, extents,
                recurrence, *more), where `dims[i]` is the dimension in which tensor i is mapped, or
                None. Returns the results and the dimensions in which these are mapped.
        """

        def kernel(*arguments):
            return run(*self._records(arguments))

        def form(*arguments):
            return fake(*self._records(arguments))

        def rule(info, in_dims, *arguments):
            if any(dim is not None for dim in in_dims[self.count : self.count + 3]):
                raise ValueError(
                    "vmap over lengths, cu_seqlens or resets is not possible: share them"
                )
            records = self._records(arguments)
            tensors, dims = records[: self.count], in_dims[: self.count]
            return vmap(info.batch_size, tensors, dims, *records[self.count :])

        torch.library.register_fake(self.name, form, lib=library)
        torch.library.register_vmap(self.name, rule, lib=library)
        for device in ("CPU", "CUDA"):
            library.impl(self.name, kernel, device)

    def register_autograd(self, setup: Callable, gradient: Callable) -> None:
        """Its derivative: setup(ctx, inputs, output) keeps what gradient(ctx, *grads) needs."""

        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)
            setup(ctx, self._records(inputs), output)

        torch.library.register_autograd(
            self.name, gradient, setup_context=setup_context, lib=library
        )

    def register_autocast(self) -> None:
        """Under autocast its first three arguments, those of a product (input, weight and bias, or
        lists of them), are cast; u and states are not: rounding u to bfloat16 would end its memory
        after some hundred steps."""
        operator = getattr(torch.ops.fastindrnn, self.name.removeprefix("fastindrnn::"))

        def under_autocast(device, x, weight, bias, *unchanged):
            # As everywhere, autocast leaves float64 alone.
            dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                cast = x.to(dtype), _cast(weight, dtype), _cast(bias, dtype)
                return operator(*cast, *unchanged)

        for device in ("CPU", "CUDA"):
            library.impl(self.name, partial(under_autocast, device.lower()), f"Autocast{device}")


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """A tensor, a list of tensors, or None."""
    if x is None:
        return None
    return [y.to(dtype) for y in x] if isinstance(x, list) else x.to(dtype)
