"""What all candidates of a case are called with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """x, the input of a layer or of the recurrence alone, and the gradient that arrives at the
    output, (B, T, N); u (N,)."""

    x: Tensor
    grad: Tensor
    u: Tensor

    @classmethod
    def draw(cls, sizes, dtype, device):
        """Normal x and gradients, u from U(0, 1), always the same."""
        generator = torch.Generator(device).manual_seed(0)
        options = {"dtype": dtype, "device": device, "generator": generator}
        x, grad = (torch.randn(*sizes, **options) for _ in range(2))
        return cls(x, grad, torch.rand(sizes[-1], **options))

    def head(self, steps):
        """The first time steps alone."""
        return Inputs(*(part[:, :steps].contiguous() for part in (self.x, self.grad)), self.u)

    @property
    def bytes(self):
        """Of x alone."""
        return self.x.numel() * self.x.element_size()
