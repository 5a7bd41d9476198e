"""A recurrent block inside a larger model: pre-norm residual blocks of an IndRNN and an MLP, as in
a transformer, where the recurrence takes the place of attention.

    python examples/larger_model.py [--compile] [--amp] [--steps 200]
    torchrun --nproc-per-node 2 examples/larger_model.py         data parallel, gradients averaged

The task is generated: recall at the end of the sequence which of its symbols was marked.
"""

import argparse
import os

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fastindrnn import IndRNN, constrain_after_step, parameter_groups, recurrent_max_for

SYMBOLS, T = 8, 64


class Block(nn.Module):
    """x + IndRNN(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.recurrent = IndRNN(
            size, size, batch_first=True, norm="layer", grad_clip=10.0,
            recurrent_max=recurrent_max_for(T),
        )  # fmt: skip
        self.out = nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x):
        x = x + self.out(self.recurrent(self.norms[0](x))[0])
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    def __init__(self, size=64, blocks=2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 * SYMBOLS, size)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(blocks)))
        self.head = nn.Linear(size, SYMBOLS)

    def forward(self, symbols):
        return self.head(self.blocks(self.embedding(symbols))[:, -1])


def batch(size):
    """Symbols (B, T), of which one has the mark, and which that is (B,)."""
    symbols = torch.randint(SYMBOLS, (size, T))
    place = torch.randint(T, (size, 1))
    answer = symbols.gather(1, place)[:, 0]
    return symbols.scatter_add(1, place, torch.full_like(place, SYMBOLS)), answer


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--amp", action="store_true", help="in bfloat16 where autocast says so")
    args = parser.parse_args(argv)
    is_parallel = "RANK" in os.environ
    if is_parallel:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = distributed.get_rank() if is_parallel else 0
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.manual_seed(0)
    model = Model().to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2), lr=2e-3)
    constrain_after_step(optimizer, model)
    run = DistributedDataParallel(model) if is_parallel else model
    run = torch.compile(run) if args.compile else run
    torch.manual_seed(rank)  # other data in each process
    for step in range(1, args.steps + 1):
        symbols, answer = (x.to(device) for x in batch(64))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            loss = cross_entropy(run(symbols), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 and rank == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    if is_parallel:
        distributed.destroy_process_group()
    return loss.item()


if __name__ == "__main__":
    main()
