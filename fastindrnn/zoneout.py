"""Zoneout: at a step drawn at random a neuron keeps its state. Krueger et al. 2017, 1606.01305.

    training    h_t = h_{t-1} with probability p, else f(a_t + u * h_{t-1})
    evaluation  h_t = p * h_{t-1} + (1 - p) * f(a_t + u * h_{t-1})

A kept state is the identity map, so that training is the recurrence over the steps that are not
kept, as parallel in time as ever: these are moved together, channel by channel, and back. The
expected mix of evaluation is no clamped map: a loop over time.
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
    probability: float,
    training: bool,
    sequences: Sequences,
    recurrence: Recurrence,
) -> tuple[Tensor, Tensor]:
    """`indrnn_scan` of a (B, T, N) with zoneout; not for resets or packed sequences, nor for
    direction "both"."""
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
    """Padding is not active: with it a state is kept to the end of the tensor."""
    if a.shape[1] == 0:
        return a, state
    together = torch.argsort(active.logical_not().to(torch.uint8), dim=1, stable=True)
    # Behind the active steps run as many others, whose states must not overflow where |u| > 1.
    idle = 0.0 if recurrence.nonlinearity == "identity" else torch.finfo(a.dtype).min
    a = a.masked_fill(active.logical_not(), idle)
    h, _ = run_scan(a.gather(1, together), u, state, WHOLE, recurrence)
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
