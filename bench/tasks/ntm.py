"""A small neural Turing machine: Graves et al. 2014, arXiv 1410.5401, section 3.

An LSTM, the controller, moves a write head and a read head over a memory of N vectors. A head's
weights say how much of each place it reads or writes.
"""

import torch
from torch import nn
from torch.nn.functional import normalize, softplus

PLACES, WIDTH = 128, 20  # N and M: of the memory
SHIFTS = 3  # by -1, 0 and 1
HEADS = 2  # the one that writes, the one that reads
LEAST = 0.1  # length of a vector of the memory below which it matches less: small gradients
EMPTY = 1e-6  # what the memory holds at first


def address(memory, weights, key, strength, gate, shift, sharpness):
    """The weights of heads at their next step: equations 5 to 9.

    memory     (B, N, M)
    weights    (B, heads, N): those of the step before
    key        (B, heads, M): what the places are compared with
    strength   (B, heads, 1), at least 0: how much the best match is preferred
    gate       (B, heads, 1), from 0 to 1: 1 for the places that match, 0 for those of before
    shift      (B, heads, 3), of sum 1: how much of the weights moves by -1, 0 and 1 place
    sharpness  (B, heads, 1), at least 1: the power that undoes the blur of the shift

    Returns (B, heads, N), of sum 1.
    """
    similarity = normalize(key, dim=-1) @ normalize(memory, dim=-1, eps=LEAST).mT
    match = (strength * similarity).softmax(-1)
    weights = gate * match + (1 - gate) * weights
    neighbours = torch.stack([weights.roll(-1, -1), weights, weights.roll(1, -1)], -1)
    shifted = (neighbours @ shift[..., None])[..., 0]
    # A rounded sum may be 0, whose power has no gradient.
    sharpened = shifted.clamp_min(1e-12) ** sharpness
    return sharpened / sharpened.sum(-1, keepdim=True)


def write(memory, weights, erased, added):
    """The memory (B, N, M) after a head with weights (B, N) has been there: equations 3 and 4.

    erased  (B, M), from 0 to 1: how much of what a place holds is lost
    added   (B, M)
    """
    weights, erased, added = weights[:, :, None], erased[:, None], added[:, None]
    return memory * (1 - weights * erased) + weights * added


class NeuralTuringMachine(nn.Module):
    """(x (B, T, inputs), state=None) -> (output (B, T, hidden + M), state): at each step what the
    controller says and what the read head has found."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.controller = nn.LSTMCell(inputs + WIDTH, hidden)
        self.sizes = WIDTH, 1, 1, SHIFTS, 1  # of what moves a head, as `address` takes it
        self.heads = nn.Linear(hidden, HEADS * sum(self.sizes))
        self.content = nn.Linear(hidden, 2 * WIDTH)  # to be erased, and to be added
        self.output_size = hidden + WIDTH

    def start(self, x):
        """Nothing is stored, and both heads are at the first place."""
        batch = len(x)
        controller = x.new_zeros(2, batch, self.controller.hidden_size)
        memory = x.new_full((batch, PLACES, WIDTH), EMPTY)
        weights = x.new_zeros(batch, HEADS, PLACES)
        weights[..., 0] = 1
        return *controller, memory, weights, x.new_zeros(batch, WIDTH)

    def move(self, memory, weights, hidden):
        """The weights of both heads, (B, 2, N)."""
        said = self.heads(hidden).unflatten(-1, (HEADS, -1)).split(self.sizes, -1)
        key, strength, gate, shift, sharpness = said
        return address(
            memory,
            weights,
            key.tanh(),
            softplus(strength),
            gate.sigmoid(),
            shift.softmax(-1),
            1 + softplus(sharpness),
        )

    def forward(self, x, state=None):
        hidden, cell, memory, weights, found = self.start(x) if state is None else state
        outputs = []
        for inputs in x.unbind(1):
            hidden, cell = self.controller(torch.cat([inputs, found], -1), (hidden, cell))
            weights = self.move(memory, weights, hidden)
            erased, added = self.content(hidden).chunk(2, -1)
            memory = write(memory, weights[:, 0], erased.sigmoid(), added.tanh())
            found = (weights[:, 1, None] @ memory)[:, 0]
            outputs.append(torch.cat([hidden, found], -1))
        return torch.stack(outputs, 1), (hidden, cell, memory, weights, found)
