"""The gradient of the scan's gradient, for whole tensors: needed where a loss holds gradients.

    s_t     the state that step t starts from: h_{t-1}; h0 at the first step; 0 after a reset
    d_t     the gradient of a_t, what `scan_backward` computes
    k_t     f'(z_t), or 0 where the clip acted on d_t
    v_*     the gradients of `scan_backward`'s results, grad_a, grad_u, grad_h0 and grad_bias

With v_0 = v_h0, a recurrence in the direction of the scan gives v_t, the gradient with respect to
the grad_h of step t:

    v_t = k_t * (v_a_t + v_b + v_u * s_t + u * v_{t-1})

    gradient of grad_h      v                       gradient of u       sum of d_t * v_{t-1}
    gradient of grad_h_n    v of the last step      gradient of s_t     v_u * d_t

The gradient of s_t goes to h of the step before, or to h0. The slope of tanh, 1 - h^2, depends on
h, so that the gradient of h_t has a further term:

    -2 h_t * (gradient with respect to h_t) * v_t / k_t
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import Extents, Recurrence, opposite
from . import calls
from .layout import halves, joined


@dataclass(slots=True)
class _Tensors:
    """The arguments of `scan_backward`, its result grad_a, and the gradients v of its results."""

    grad_h: Tensor
    grad_h_n: Tensor | None
    h: Tensor
    u: Tensor
    h0: Tensor | None
    grad_a: Tensor
    v_a: Tensor | None
    v_u: Tensor | None
    v_h0: Tensor | None
    v_b: Tensor | None


def second_gradients(grads, tensors, extents, recurrence):
    """The gradients of `scan_backward`'s tensors (grad_h, grad_h_n, h, u, h0), from those of its
    results; `tensors` are these five and its first result, grad_a."""
    operands = *tensors, *grads
    if recurrence.direction != "both":
        return _one_direction(_Tensors(*operands), extents, recurrence)
    forward, reverse = (_Tensors(*half) for half in halves(*operands))
    return joined(
        _one_direction(forward, extents, recurrence.towards("forward")),
        _one_direction(reverse, extents, recurrence.towards("reverse")),
    )


def _one_direction(t, extents, recurrence):
    h, u, d = t.h, t.u, t.grad_a
    order = _TimeOrder(h, extents, recurrence.direction == "reverse")
    v_a = torch.zeros_like(h) if t.v_a is None else t.v_a
    v_a = v_a if t.v_b is None else v_a + t.v_b
    v_u = torch.zeros_like(u) if t.v_u is None else t.v_u
    v_0 = h.new_zeros(()) if t.v_h0 is None else t.v_h0.to(h.dtype)
    state_0 = h.new_zeros(()) if t.h0 is None else t.h0.to(h.dtype)

    arriving = v_a + v_u * order.previous(h, state_0)
    arriving = arriving + u * order.previous(torch.zeros_like(h), v_0)
    clipped = None if recurrence.grad_clip is None else d.abs() >= recurrence.grad_clip
    v = _slopes_times(arriving, h, u, clipped, order, extents, recurrence)
    v_before = order.previous(v, v_0)
    grad_u = (d * v_before).sum(tuple(range(d.dim() - 1)))
    grad_s = v_u * d
    grad_state = order.following(grad_s)
    if recurrence.nonlinearity == "tanh":
        g_n = h.new_zeros(()) if t.grad_h_n is None else t.grad_h_n.to(h.dtype)
        grad_of_h = t.grad_h + order.following(u * d, g_n)
        v_over_k = v_a + v_u * order.previous(h, state_0) + u * v_before
        if clipped is not None:
            v_over_k = torch.where(clipped, 0.0, v_over_k)
        grad_state = grad_state - 2 * h * grad_of_h * v_over_k
    grad_grad_h_n = None
    if t.grad_h_n is not None:
        grad_grad_h_n = order.last(v, v_0.expand(t.grad_h_n.shape)).to(t.grad_h_n.dtype)
    return (
        v,
        grad_grad_h_n,
        torch.where(order.valid[..., None], grad_state, 0.0).to(h.dtype),
        grad_u.to(u.dtype),
        None if t.h0 is None else order.first(grad_s, t.h0.shape).to(t.h0.dtype),
    )


def _slopes_times(arriving, h, u, clipped, order, extents, recurrence):
    """v, by `scan_backward` in the other direction, which takes the slopes k from a state: where
    the clip acted, from one at which the nonlinearity is flat."""
    state, other = h, recurrence.without_clip()
    if clipped is not None and recurrence.nonlinearity == "identity":
        state = (~clipped).to(h.dtype)
        other = Recurrence("relu", recurrence.direction)
    elif clipped is not None:
        flat = {"relu": 0.0, "relu6": 0.0, "hardtanh": -1.0, "tanh": 1.0}[recurrence.nonlinearity]
        state = torch.where(clipped, flat, h)
    other = other.towards(opposite(recurrence.direction))
    extents = Extents(extents.lengths, extents.cu_seqlens, order.next_resets())
    return calls.scan_backward(arriving.to(h.dtype), None, state, u, None, extents, other)[0]


class _TimeOrder:
    """Which steps of each sequence come before and after which, in one direction of time, for whole
    tensors (B, T, N) or (total, N)."""

    def __init__(self, h, extents, reverse):
        steps = torch.arange(h.shape[-2], device=h.device)
        if extents.cu_seqlens is None:
            begin = torch.zeros(h.shape[0], 1, dtype=torch.long, device=h.device)
            lengths = extents.lengths
            end = begin + h.shape[1] if lengths is None else lengths[:, None]
            sequence = torch.arange(h.shape[0], device=h.device)[:, None]
            self.valid = steps < end
        else:
            lengths = extents.cu_seqlens.diff()
            sequence = torch.arange(len(lengths), device=h.device).repeat_interleave(lengths)
            begin, end = extents.cu_seqlens[:-1][sequence], extents.cu_seqlens[1:][sequence]
            self.valid = torch.ones_like(sequence, dtype=torch.bool)
        is_begin = ((steps == begin) & (begin < end))[..., None]
        is_end = (steps == end - 1)[..., None]
        self.is_first, self.is_last = (is_end, is_begin) if reverse else (is_begin, is_end)
        self.shift = -1 if reverse else 1
        self.sequence = sequence
        self.reset = None if extents.resets is None else extents.resets[..., None]

    def _unless_reset(self, x):
        return x if self.reset is None else torch.where(self.reset, 0.0, x)

    def _at_each_step(self, x):
        """A value for each sequence, (B, N), repeated for its steps; a single number as it is."""
        return x[self.sequence] if x.dim() else x

    def previous(self, x, before):
        """x of the step before each; `before` (B, N) at the first step, 0 at a reset."""
        x = torch.where(self.is_first, self._at_each_step(before), x.roll(self.shift, -2))
        return self._unless_reset(x)

    def following(self, x, after=None):
        """x of the step after each, 0 where that step is a reset; `after` (B, N) or 0 at the last
        step."""
        after = x.new_zeros(()) if after is None else after
        shifted = self._unless_reset(x).roll(-self.shift, -2)
        return torch.where(self.is_last, self._at_each_step(after), shifted)

    def next_resets(self):
        """The reset mask in the other direction of time: a reset at step t parts it from the step
        before, which then is the one that starts anew."""
        if self.reset is None:
            return None
        return (self.reset.roll(-self.shift, -2) & ~self.is_last)[..., 0]

    def first(self, x, shape):
        """x at each sequence's first step, 0 if that is a reset or there is none: (B, N)."""
        return self._gather(self._unless_reset(x), self.is_first, x.new_zeros(shape))

    def last(self, x, without):
        """x at each sequence's last step, `without` (B, N) where there is none."""
        return self._gather(x, self.is_last, without)

    def _gather(self, x, here, without):
        sequence = self.sequence.expand(here.shape[:-1])[here[..., 0]]
        return without.index_put((sequence,), x[here[..., 0]])
