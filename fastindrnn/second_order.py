"""The gradient of the scan's gradient, for whole tensors: needed where a loss holds gradients."""

from typing import Any

import torch


def second_gradients(ctx, v_a, v_u, v_h0, v_b):
    """The gradient of `scan_backward`: the directions of a bidirectional one know nothing of each
    other."""
    grad_h, grad_h_n, h, u, h0, *sequences, d = ctx.saved_tensors
    nonlinearity, reverse, bidirectional, grad_clip = ctx.options
    tensors = v_a, v_u, v_h0, v_b, grad_h, grad_h_n, h, u, h0, d

    def run(tensors, reverse):
        return _one_direction(*tensors, *(*sequences, nonlinearity, reverse, grad_clip))

    if not bidirectional:
        return *run(tensors, reverse), *[None] * 7
    first, second = halves(*tensors)
    pairs = zip(run(first, reverse), run(second, not reverse), strict=True)
    return *[None if x is None else torch.cat((x, y), -1) for x, y in pairs], *[None] * 7


def halves(*tensors: torch.Tensor | None) -> list[Any]:
    """The channels of the first direction of each tensor, and those of the second."""

    def split(x):
        if x is None:
            return None, None
        # Not chunk, whose sizes PyTorch cannot always follow where they are symbols, nor unflatten,
        # for which the vmap of torch.autograd has no rule.
        return x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).unbind(-2)

    return list(zip(*map(split, tensors), strict=True))


def _one_direction(
    v_a,
    v_u,
    v_h0,
    v_b,
    grad_h,
    grad_h_n,
    h,
    u,
    h0,
    d,
    lengths,
    cu_seqlens,
    resets,
    nonlinearity,
    reverse,
    grad_clip,
):
    """Written with `scan_backward` itself.

    With v the gradients of its outputs, s_t the state that step t starts from (h_{t-1}, h0 at the
    first step, 0 after a reset), k_t its slope m_t, or 0 where the clip acted, and v_0 = v_h0:

        v_t = k_t * (v_a_t + v_u * s_t + u * v_{t-1})                 the same recurrence, walked
        the other way
        grad_h: v;  h_n: v_T;  u: sum of d_t * v_{t-1};  s_t (h and h0): v_u * d_t
        tanh, whose slope 1 - h^2 moves with h, adds to h_t: -2 h_t * (g_t + u * d_{t+1}) * v_t /
        k_t
    """
    walk = _Walk(h, reverse, lengths, cu_seqlens, resets)
    v_a = torch.zeros_like(h) if v_a is None else v_a
    v_a = v_a if v_b is None else v_a + v_b
    v_u = torch.zeros_like(u) if v_u is None else v_u
    v_0 = h.new_zeros(()) if v_h0 is None else v_h0.to(h.dtype)
    state_0 = h.new_zeros(()) if h0 is None else h0.to(h.dtype)

    arriving = v_a + v_u * walk.previous(h, state_0) + u * walk.previous(torch.zeros_like(h), v_0)
    mask, kind, acted = h, nonlinearity, None
    if grad_clip is not None:
        acted = d.abs() >= grad_clip
        if nonlinearity == "identity":
            mask, kind = (~acted).to(h.dtype), "relu"
        else:
            saturated = {"relu": 0.0, "relu6": 0.0, "hardtanh": -1.0, "tanh": 1.0}[nonlinearity]
            mask = torch.where(acted, saturated, h)
    v = torch.ops.fastindrnn.scan_backward(
        arriving.to(h.dtype),
        None,
        mask,
        u,
        None,
        lengths,
        cu_seqlens,
        walk.next_resets(),
        kind,
        not reverse,
        False,
        None,
    )[0]
    v_before = walk.previous(v, v_0)
    grad_u = (d * v_before).sum(tuple(range(d.dim() - 1)))
    grad_s = v_u * d
    grad_state = walk.following(grad_s)
    if nonlinearity == "tanh":
        g_n = h.new_zeros(()) if grad_h_n is None else grad_h_n.to(h.dtype)
        message = grad_h + walk.following(u * d, g_n)
        kept = v_a + v_u * walk.previous(h, state_0) + u * v_before
        if acted is not None:
            kept = torch.where(acted, 0.0, kept)
        grad_state = grad_state - 2 * h * message * kept
    return (
        v,
        None if grad_h_n is None else walk.last(v, v_0.expand(grad_h_n.shape)).to(grad_h_n.dtype),
        torch.where(walk.valid[..., None], grad_state, 0.0).to(h.dtype),
        grad_u.to(u.dtype),
        None if h0 is None else walk.first(grad_s, h0.shape).to(h0.dtype),
    )


class _Walk:
    """The order in which the recurrence visits the rows of each sequence, for whole tensors at a
    time."""

    def __init__(self, h, reverse, lengths, cu_seqlens, resets):
        steps = torch.arange(h.shape[-2], device=h.device)
        if cu_seqlens is None:
            begin = torch.zeros(h.shape[0], 1, dtype=torch.long, device=h.device)
            end = begin + h.shape[1] if lengths is None else lengths[:, None]
            sequence = torch.arange(h.shape[0], device=h.device)[:, None]
            self.valid = steps < end
        else:
            lengths = cu_seqlens.diff()
            sequence = torch.arange(len(lengths), device=h.device).repeat_interleave(lengths)
            begin, end = cu_seqlens[:-1][sequence], cu_seqlens[1:][sequence]
            self.valid = torch.ones_like(sequence, dtype=torch.bool)
        is_begin = ((steps == begin) & (begin < end))[..., None]
        is_end = (steps == end - 1)[..., None]
        self.is_first, self.is_last = (is_end, is_begin) if reverse else (is_begin, is_end)
        self.step = -1 if reverse else 1
        self.sequence = sequence
        self.reset = None if resets is None else resets[..., None]

    def _unless_reset(self, x):
        return x if self.reset is None else torch.where(self.reset, 0.0, x)

    def _rows(self, x):
        """A value for each sequence, (B, N), as rows; a number as it is."""
        return x[self.sequence] if x.dim() else x

    def previous(self, x, before):
        """x one step earlier in the walk, `before` (B, N) at the first step, 0 at a reset."""
        x = torch.where(self.is_first, self._rows(before), x.roll(self.step, -2))
        return self._unless_reset(x)

    def following(self, x, after=None):
        """x one step later in the walk, 0 where that step is a reset, `after` (B, N) or 0 at the
        last step."""
        after = x.new_zeros(()) if after is None else after
        return torch.where(
            self.is_last, self._rows(after), self._unless_reset(x).roll(-self.step, -2)
        )

    def next_resets(self):
        if self.reset is None:
            return None
        return (self.reset.roll(-self.step, -2) & ~self.is_last)[..., 0]

    def first(self, x, shape):
        """x at each sequence's first step, 0 if that is a reset or there is none: (B, N)."""
        return self._gather(self._unless_reset(x), self.is_first, x.new_zeros(shape))

    def last(self, x, without):
        """x at each sequence's last step, `without` (B, N) where there is none."""
        return self._gather(x, self.is_last, without)

    def _gather(self, x, here, without):
        sequence = self.sequence.expand(here.shape[:-1])[here[..., 0]]
        return without.index_put((sequence,), x[here[..., 0]])
