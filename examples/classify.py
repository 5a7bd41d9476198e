"""Classification of sequences that differ in length: did the low or the high tone come first?

    python examples/classify.py [--steps 300]

The data are generated: noise, with a short tone of each kind somewhere in it. `lengths` keeps the
padding out of everything, norms included, and `last_output` picks each sequence's last step.
"""

import argparse

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fastindrnn import (
    IndRNN,
    constrain_after_step,
    last_output,
    parameter_groups,
    recurrent_max_for,
)

LONGEST = 200


def batch(size):
    """Sequences (B, T, 1), their lengths (B,) and classes (B,)."""
    sequences, classes = [], torch.randint(2, (size,))
    tones = [torch.sin(torch.arange(20) * 6.28 / period)[:, None] for period in (10, 4)]
    for label in classes.tolist():
        length = int(torch.randint(60, LONGEST + 1, ()))
        sequence = 0.3 * torch.randn(length, 1)
        first = int(torch.randint(length - 45, ()))
        second = int(torch.randint(first + 20, length - 20, ()))
        for place, tone in ((first, tones[label]), (second, tones[1 - label])):
            sequence[place : place + 20] += tone
        sequences.append(sequence)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(sequences, batch_first=True), lengths, classes


class Classifier(nn.Module):
    """A convolution that hears a few steps at once, two recurrent layers, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = nn.Conv1d(1, 32, 9, padding=4)
        self.recurrent = IndRNN(
            32, 64, 2, batch_first=True, norm="batch", grad_clip=10.0,
            recurrent_max=recurrent_max_for(LONGEST),
        )  # fmt: skip
        self.head = nn.Linear(64, 2)

    def forward(self, x, lengths):
        heard = self.ear(rearrange(x, "b t feature -> b feature t")).relu()
        heard = rearrange(heard, "b feature t -> b t feature")
        output, _ = self.recurrent(heard, lengths=lengths)
        return self.head(last_output(output, lengths, batch_first=True))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(parameter_groups(model, 1e-4), lr=2e-3)
    constrain_after_step(optimizer, model)
    for step in range(1, args.steps + 1):
        x, lengths, classes = batch(64)
        loss = cross_entropy(model(x, lengths), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        x, lengths, classes = batch(1000)
        right = (model(x, lengths).argmax(1) == classes).float().mean().item()
    print(f"{right:.1%} of 1000 new sequences are classified rightly")
    return right


if __name__ == "__main__":
    main()
