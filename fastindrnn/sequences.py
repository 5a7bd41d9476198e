"""The forms in which a caller gives sequences, and the two that the layers work on.

Inside, a batch is a tensor (B, T, features), with `lengths` where it is padded, and lies in memory
in the caller's order of batch and time; or it is a tensor (total, features) with `cu_seqlens`, in
which the time steps of one sequence follow those of another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import check_floating, check_lengths, check_resets, check_state
from .options import Direction, Extents

Restore = Callable[[Tensor], Tensor | PackedSequence]


@dataclass(slots=True)
class Sequences:
    """Where the sequences of a batch begin and end, and how they lie in memory.

    Args:
        batch: number of sequences B.
        time_first: tensors are (B, T, features) by strides and (T, B, features) in memory.
        lengths, cu_seqlens, resets: as in `fastindrnn.functional.indrnn_scan`.
        first_step: the time step with which the tensors begin, the same for all sequences; None if
            it is not known. Statistics of each time step alone depend on it.
    """

    batch: int
    time_first: bool = False
    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None
    resets: Tensor | None = None
    first_step: int | None = 0

    def extents(self, direction: Direction = "forward") -> Extents:
        """Where the sequences begin and end, for a recurrence in this direction.

        A reset at step t parts it from step t - 1. In reverse it is step t - 1 that starts anew.
        """
        resets = self.resets
        if direction == "reverse" and resets is not None:
            end = resets.shape[1] if self.lengths is None else self.lengths[:, None]
            inner = torch.arange(resets.shape[1], device=resets.device) < end - 1
            resets = resets.roll(-1, 1) & inner
        return Extents(self.lengths, self.cu_seqlens, resets)

    def valid(self, x: Tensor) -> Tensor | None:
        """(B, T) booleans: which time steps of x are not padding; None if there is none."""
        if self.lengths is None:
            return None
        return torch.arange(x.shape[1], device=x.device) < self.lengths[:, None]

    def without_padding(self, x: Tensor) -> Tensor:
        """x with 0 in the padding, whatever stood there, in the batch's order in memory."""
        valid = self.valid(x)
        if valid is None:
            return x
        if self.time_first:
            valid = valid.t().contiguous()[..., None]
            return torch.where(valid, x.transpose(0, 1), 0.0).transpose(0, 1)
        return torch.where(valid[..., None], x, 0.0)

    def steps(self, x: Tensor) -> Tensor:
        """Which step of its sequence each time step of x is: (T,), or (total,)."""
        index = torch.arange(x.shape[-2], device=x.device)
        if self.cu_seqlens is None:
            return index
        return index - self.cu_seqlens[:-1].repeat_interleave(
            self.cu_seqlens.diff(), output_size=len(index)
        )

    def in_memory_order(self, x: Tensor) -> Tensor:
        """x (B, T, features), or a copy of it in the batch's order in memory."""
        if self.time_first:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        return x

    def shared_over_time(self, x: Tensor, dropout: float) -> Tensor:
        """x with a mask for each sequence, one for all of its steps (Gal and Ghahramani 2016)."""
        mask = nn.functional.dropout(x.new_ones(self.batch, x.shape[-1]), dropout)
        if self.cu_seqlens is None:
            return x * mask[:, None]
        return x * mask.repeat_interleave(self.cu_seqlens.diff(), 0, output_size=x.shape[0])

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts side by side along the features, in the batch's order in memory."""
        if len(parts) == 1:
            return parts[0]
        if self.time_first:
            return torch.cat([x.transpose(0, 1) for x in parts], -1).transpose(0, 1)
        return torch.cat(list(parts), -1)


@dataclass(slots=True)
class PreparedInput:
    """A caller's input in the form that the layers work on, and the way back.

    Args:
        x: (B, T, features), or (total, features).
        sequences: where the sequences of x begin and end.
        restore: brings an output of x's form into the form of the caller's input.
        has_batch: whether the caller's input and states have a dimension of the batch.
        order: sequence i of x is sequence order[i] of the caller's states, as in a PackedSequence;
            None if they have one order.
    """

    x: Tensor
    sequences: Sequences
    restore: Restore
    has_batch: bool = True
    order: Tensor | None = None

    def prepare_states(self, hx: Tensor, shape: tuple[int, ...], name: str = "hx") -> Tensor:
        """The caller's states, checked, as (..., B, units) in the order of x's sequences.

        Args:
            hx: the caller's states.
            shape: what they must be, without the batch.
            name: of the argument, for errors.
        """
        expected = (*shape[:-1], *((self.sequences.batch,) if self.has_batch else ()), shape[-1])
        check_state(name, hx, self.x.device)
        if hx.shape != expected:
            raise ValueError(f"{name} must be {expected}, but is {tuple(hx.shape)}")
        hx = hx if self.has_batch else hx.unsqueeze(-2)
        return hx if self.order is None else hx.index_select(-2, self.order)

    def restore_states(self, h_n: Tensor) -> Tensor:
        """States (..., B, units) in the caller's order and form: the inverse of
        `prepare_states`."""
        if self.order is not None:
            h_n = h_n.index_select(-2, torch.argsort(self.order))
        return h_n if self.has_batch else h_n.squeeze(-2)


def prepare_input(
    input: Tensor | PackedSequence,
    features: int,
    batch_first: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> PreparedInput:
    """Checks a layer's input and brings it into the form that the layers work on.

    Args:
        input: (T, B, features), (B, T, features) with batch_first, (T, features), or a
            PackedSequence.
        features: how many it must have.
        batch_first: as in `IndRNN`.
        lengths: as in `Stack.forward`.
        resets: as in `Stack.forward`.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    if isinstance(input, PackedSequence):
        if lengths is not None or resets is not None:
            raise ValueError("lengths and resets cannot be given with a PackedSequence")
        if input.data.dim() != 2 or input.data.shape[1] != features:
            shape = tuple(input.data.shape)
            raise ValueError(f"input's data must be (total, {features}), but is {shape}")
        check_floating("input's data", input.data)
        return _prepare_packed(input)
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor or PackedSequence, but is {type(input).__name__}")
    check_floating("input", input)
    if input.dim() not in (2, 3) or input.shape[-1] != features:
        both = f"batch, time, {features}" if batch_first else f"time, batch, {features}"
        raise ValueError(
            f"input must be ({both}), or (time, {features}) without a batch, "
            f"but is {tuple(input.shape)}"
        )
    if resets is not None:
        check_resets(resets, input.shape[:-1], input.device)
    if input.dim() == 2:
        if lengths is not None:
            raise ValueError("lengths must be None for an input without a batch")
        resets = None if resets is None else resets[None]
        sequences = Sequences(1, resets=resets)
        return PreparedInput(input[None], sequences, _without_batch, has_batch=False)
    x = input if batch_first else input.transpose(0, 1)
    if resets is not None and not batch_first:
        resets = resets.transpose(0, 1)
    sequences = Sequences(x.shape[0], not batch_first, lengths=lengths, resets=resets)
    if lengths is not None:
        check_lengths(lengths, x.shape[0], x.shape[1], x.device)
        # What stands in the padding must not reach a gradient, and 0 * NaN is not 0.
        x = sequences.without_padding(x)
    return PreparedInput(x, sequences, _unchanged if batch_first else _time_first)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _without_batch(x: Tensor) -> Tensor:
    return x.squeeze(0)


def _prepare_packed(input: PackedSequence) -> PreparedInput:
    """A PackedSequence holds the first steps of all sequences, then all second steps; the layers
    want all steps of one sequence after those of another. Its sequences are sorted by length;
    states are in the caller's order."""
    data, batch_sizes, order, _ = input
    batch = int(batch_sizes[0])
    present = torch.arange(batch, device=batch_sizes.device) < batch_sizes[:, None]
    place = torch.zeros_like(present, dtype=torch.long)  # in the data, of each step and sequence
    place[present] = torch.arange(len(data), device=place.device)
    index = place.T[present.T].to(data.device)
    back = torch.argsort(index)
    cu_seqlens = nn.functional.pad(present.sum(0).cumsum(0), (1, 0)).to(data.device)

    def restore(x: Tensor) -> PackedSequence:
        return input._replace(data=x[back])

    sequences = Sequences(batch, cu_seqlens=cu_seqlens)
    return PreparedInput(data[index], sequences, restore, order=order)
