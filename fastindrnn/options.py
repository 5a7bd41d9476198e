"""The options of a recurrence, the extents of its sequences and its parameters, as small records.

They travel by name from `functional` to the operators. A schema of PyTorch knows tensors, numbers
and strings alone: `ops.calls` takes the records apart, `ops.registration` puts them together again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Nonlinearity = Literal["relu", "identity", "hardtanh", "relu6", "tanh"]
Direction = Literal["forward", "reverse", "both"]
GradClipMode = Literal["per_step", "result"]
Strategy = Literal["auto", "fused", "split"]


def opposite(direction: Direction) -> Direction:
    """The other one of "forward" and "reverse"."""
    return "reverse" if direction == "forward" else "forward"


@dataclass(frozen=True, slots=True)
class Recurrence:
    """How h_t follows from h_{t-1}; the fields as in `functional.indrnn_scan`.

    The operators know no `grad_clip_mode`: they clip at each step, or not at all.
    """

    nonlinearity: Nonlinearity = "relu"
    direction: Direction = "forward"
    grad_clip: float | None = None
    grad_clip_mode: GradClipMode = "per_step"

    def towards(self, direction: Direction) -> "Recurrence":
        """The same recurrence in another direction."""
        return Recurrence(self.nonlinearity, direction, self.grad_clip, self.grad_clip_mode)

    def without_clip(self) -> "Recurrence":
        """The same recurrence, whose gradients are not clipped."""
        return Recurrence(self.nonlinearity, self.direction)

    @property
    def clips_results(self) -> bool:
        """Whether finished gradients are clipped, outside of the operators."""
        return self.grad_clip is not None and self.grad_clip_mode == "result"


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Where the sequences of a batch begin and end; the fields as in `functional.indrnn_scan`."""

    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None
    resets: Tensor | None = None

    def are_whole(self) -> bool:
        """Whether each sequence has all T steps of the tensor and no reset within."""
        return self.lengths is None and self.cu_seqlens is None and self.resets is None

    def batch_size(self, x: Tensor) -> int:
        """B, the number of sequences in x (B, T, channels) or (total, channels)."""
        return x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def by_name(self) -> Mapping[str, Any]:
        """The fields as keyword arguments of a kernel or of the reference."""
        return {"lengths": self.lengths, "cu_seqlens": self.cu_seqlens, "resets": self.resets}


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The parameters of one layer: weight (N, K), or None where the input is W x_t + b already;
    bias (N,) or None; u (N,). With direction "both", the neurons of both directions one after the
    other."""

    weight: Tensor | None
    bias: Tensor | None
    u: Tensor

    def present(self) -> list[Tensor]:
        """Those that there are."""
        return [x for x in (self.weight, self.bias, self.u) if x is not None]


WHOLE = Extents()
