"""Where outputs and states lie in memory: as with `nn.RNN`, so that `view` works on them and they
can be changed in place."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN

STACKS = {
    "one layer": lambda **o: IndRNN(5, 6, **o),
    "layers": lambda **o: IndRNN(5, 6, 3, **o),
    "both directions": lambda **o: IndRNN(5, 6, 2, bidirectional=True, **o),
    "batch norm": lambda **o: IndRNN(5, 6, 2, norm="batch", **o),
    "norm for each step": lambda **o: IndRNN(5, 6, 2, norm="batch_per_step", norm_steps=9, **o),
    "layer norm": lambda **o: IndRNN(5, 6, 2, norm="layer", **o),
    "layer norm before": lambda **o: IndRNN(5, 6, norm="layer", norm_position="before", **o),
    "dropout": lambda **o: IndRNN(5, 6, 2, dropout=0.5, **o),
    "zoneout": lambda **o: IndRNN(5, 6, zoneout=0.5, **o),
    "clipped results": lambda **o: IndRNN(
        5, 6, 2, bidirectional=True, grad_clip=1.0, grad_clip_mode="result", **o
    ),
    "residual": lambda **o: ResidualIndRNN(5, 6, 1, norm="layer", **o),
    "dense": lambda **o: DenseIndRNN(5, 2, (1,), **o),
    "two stacks": lambda **o: Bidirectional(lambda: IndRNN(5, 6, 2, zoneout=0.5, **o)),
}
every_stack = pytest.mark.parametrize("make", STACKS.values(), ids=STACKS.keys())


def inputs(form, batch_first):
    x = torch.randn(3, 7, 5) if batch_first else torch.randn(7, 3, 5)
    if form == "without a batch":
        return x[:, 0].contiguous(), {}
    if form == "packed":
        return pack_sequence([torch.randn(n, 5) for n in (7, 3, 1)]), {}
    return x, {"lengths": torch.tensor([7, 3, 0])} if form == "lengths" else {}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@every_stack
def test_contiguous_and_changed_in_place(make, batch_first, training):
    """A contiguous input has a contiguous output. h_n has memory of its own: a mask that multiplies
    it in place changes neither the output nor what the backward reads."""
    module = make(batch_first=batch_first).train(training)
    parameters = list(module.parameters())
    for form in ("padded", "lengths", "without a batch", "packed"):
        if form == "packed" and any(getattr(part, "zoneout", 0) for part in module.modules()):
            continue
        x, options = inputs(form, batch_first)
        results = []
        for in_place in (False, True):
            torch.manual_seed(0)
            output, h_n = module(x, **options)
            output = output if isinstance(output, torch.Tensor) else output.data
            assert output.is_contiguous()
            assert h_n.is_contiguous()
            before = output.detach().clone()
            mask = torch.arange(h_n.numel()).view(h_n.shape) % 2
            h_n = h_n.mul_(mask) if in_place else h_n * mask
            assert torch.equal(output, before)
            loss = output.sin().sum() + h_n.cos().sum()
            results.append((h_n, *torch.autograd.grad(loss, parameters, allow_unused=True)))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_state_does_not_keep_the_output_alive():
    """Its memory is as large as the state, so that a stream that keeps it keeps nothing else."""
    for name, make in STACKS.items():
        _, h_n = make()(torch.randn(7, 3, 5))
        assert h_n.untyped_storage().nbytes() == h_n.numel() * 4, name
