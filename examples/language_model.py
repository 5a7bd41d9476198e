"""A character language model that carries its state from chunk to chunk, and then writes.

    python examples/language_model.py TEXT_FILE [--seconds 180] [--model indrnn|lstm]

The text is read by 32 readers side by side, each of whom goes on where it stopped. The state
therefore lives as long as the training does, and has no last step: the bound of |u| is 0.99. Above
1 the states grow until they overflow. At 1 they can still add up their inputs as long as the text
is, so that batch norm's running statistics do not fit a text that starts from zeros.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import cross_entropy

from fastindrnn import IndRNN, constrain_after_step

READERS = 32
LAYERS = {"indrnn": 6, "lstm": 2}


class LanguageModel(nn.Module):
    """Symbols (B, T) to logits (B, T, symbols), and the state to go on from."""

    def __init__(self, kind: str, symbols: int, size: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, size)
        if kind == "lstm":
            self.recurrent = nn.LSTM(size, size, layers, batch_first=True, dropout=dropout)
        else:
            self.recurrent = IndRNN(
                size, size, layers, batch_first=True, norm="batch", dropout=dropout,
                recurrent_max=0.99, grad_clip=10.0,
            )  # fmt: skip
        self.head = nn.Linear(size, symbols)

    def forward(self, symbols, state=None):
        output, state = self.recurrent(self.embedding(symbols), state)
        return self.head(output), state


def detached(state):
    """The state without its history: gradients end at the chunk's first step."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


@torch.no_grad()
def bits_per_character(model, text):
    """Of a text (characters,), which is read from its first character to its last."""
    model.eval()
    state, total = None, 0.0
    for start in range(0, len(text) - 1, 1000):
        chunk = text[None, start : start + 1001]
        logits, state = model(chunk[:, :-1], state)
        total += cross_entropy(logits[0], chunk[0, 1:], reduction="sum").item()
    model.train()
    return total / math.log(2) / (len(text) - 1)


@torch.no_grad()
def sample(model, alphabet, length, temperature=0.7):
    """Text, symbol after symbol: a step costs the same however long the text is."""
    model.eval()
    symbol, state, written = torch.tensor([alphabet.index(" ")]), None, []
    for _ in range(length):
        if isinstance(model.recurrent, IndRNN):
            output, state = model.recurrent.step(model.embedding(symbol), state)
            logits = model.head(output)
        else:
            logits, state = model(symbol[:, None], state)
            logits = logits[:, -1]
        symbol = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
        written.append(alphabet[symbol.item()])
    return "".join(written)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0, help="of training")
    parser.add_argument("--steps", type=int, help="of training, instead of seconds")
    parser.add_argument("--model", choices=["indrnn", "lstm"], default="indrnn")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--layers", type=int, help="6 of an IndRNN, 2 of an LSTM")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="at first; falls to 0")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    characters = args.text.read_text(encoding="utf-8")
    alphabet = sorted({*characters, " "})
    number = {character: i for i, character in enumerate(alphabet)}
    text = torch.tensor([number[character] for character in characters])
    held_out = text[-len(text) // 10 :]
    readers = text[: -len(held_out)]
    readers = readers[: len(readers) // READERS * READERS]
    readers = rearrange(readers, "(reader t) -> reader t", reader=READERS)

    layers = args.layers or LAYERS[args.model]
    model = LanguageModel(args.model, len(alphabet), args.size, layers, args.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    if args.model == "indrnn":
        constrain_after_step(optimizer, model)
    state, start, steps, T = None, 0, 0, 100
    began = time.monotonic()
    while True:
        elapsed = time.monotonic() - began
        left = 1 - (steps / args.steps if args.steps else elapsed / args.seconds)
        if left <= 0:
            break
        for group in optimizer.param_groups:
            group["lr"] = left * args.learning_rate
        chunk = readers[:, start : start + T + 1]
        logits, state = model(chunk[:, :-1], state)
        state = detached(state)
        logits = rearrange(logits, "b t symbol -> (b t) symbol")
        loss = cross_entropy(logits, rearrange(chunk[:, 1:], "b t -> (b t)"))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps, start = steps + 1, start + T
        if start + T + 1 > readers.shape[1]:
            state, start = None, 0
    parameters = sum(p.numel() for p in model.parameters())
    bits = bits_per_character(model, held_out)
    print(f"{args.model}, {parameters} parameters: {steps} steps, {bits:.3f} bits per character")
    print(sample(model, alphabet, 200))
    return bits


if __name__ == "__main__":
    main()
