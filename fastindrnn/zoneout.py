"""Zoneout: at randomly chosen steps a neuron keeps its state. Krueger et al. 2017, 1606.01305.

    training    h_t = h_{t-1} with probability p, else f(a_t + u * h_{t-1})
    evaluation  h_t = p * h_{t-1} + (1 - p) * f(a_t + u * h_{t-1})

In training the steps of a channel whose states are not kept form a recurrence of their own. They
are gathered, channel by channel, into a shorter sequence; the ordinary operator computes its
states; and each step of the full sequence takes the state of the last gathered step up to it. The
mix of evaluation has no such form, and is computed in a Python loop over time.
"""

import torch
from torch import Tensor

from .functional import ACTIVATIONS, run_scan
from .options import WHOLE, Recurrence
from .sequences import Sequences


def zoneout_scan(
    a: Tensor,
    u: Tensor,
    h0: Tensor | None,
    *,
    probability: float,
    training: bool,
    sequences: Sequences,
    recurrence: Recurrence,
) -> tuple[Tensor, Tensor]:
    """`indrnn_scan` with zoneout.

    Args:
        a: input (B, T, N).
        u: (N,).
        h0: (B, N) or None.
        probability: of keeping a state.
        training: whether states are kept at random, or mixed by the probability.
        sequences: without resets and cu_seqlens.
        recurrence: its direction is "forward" or "reverse".

    Returns:
        h (B, T, N) and h_n (B, N).
    """
    reverse = recurrence.direction == "reverse"
    recurrence = recurrence.towards("forward")
    valid = sequences.valid(a)
    valid = a.new_ones(a.shape[:2], dtype=torch.bool) if valid is None else valid
    if reverse:
        a, valid = a.flip(1), valid.flip(1)
    state = a.new_zeros(a.shape[0], a.shape[2]) if h0 is None else h0.to(a.dtype)
    if training:
        draws = torch.rand(a.shape, device=a.device)
        active = (draws >= probability) & valid[..., None]
        h, h_n = _over_active_steps(a, u, state, active, recurrence)
    else:
        h, h_n = _expected(a, u, state, probability, valid, recurrence)
    h = sequences.without_padding(h.flip(1) if reverse else h)
    return sequences.in_memory_order(h), h_n


def _over_active_steps(a, u, state, active, recurrence):
    """`active` (B, T, N): the steps that compute a new state. Those of the padding do not, so that
    the last state of a sequence stands at the end of the tensor too."""
    if a.shape[1] == 0:
        return a, state
    # For each channel its active steps first, in their order, then the others.
    order = torch.argsort(active.logical_not().to(torch.uint8), dim=1, stable=True)
    # The operator computes states of the other steps too: these must not overflow where |u| > 1.
    idle = 0.0 if recurrence.nonlinearity == "identity" else torch.finfo(a.dtype).min
    a = a.masked_fill(active.logical_not(), idle)
    h, _ = run_scan(a.gather(1, order), u, state, WHOLE, recurrence)
    passed = active.cumsum(1)
    h = h.gather(1, (passed - 1).clamp(min=0))
    h = torch.where(passed > 0, h, state[:, None])
    return h, h[:, -1].clone()  # which does not keep the memory of all steps


def _expected(a, u, state, probability, valid, recurrence):
    if recurrence.grad_clip is not None and torch.is_grad_enabled():
        raise ValueError("grad_clip does not act on zoneout in evaluation: use torch.no_grad()")
    activation, outputs = ACTIVATIONS[recurrence.nonlinearity], []
    for t in range(a.shape[1]):
        new = activation(a[:, t] + u * state).to(a.dtype)
        mixed = probability * state + (1 - probability) * new
        state = torch.where(valid[:, t, None], mixed, state)
        outputs.append(state)
    return (torch.stack(outputs, 1) if outputs else a), state
