"""The networks of `python -m bench mnist`, as they start, and their optimiser."""

from functools import partial

import torch
from einops import rearrange
from torch import nn

from bench.tasks import training
from fastindrnn import (
    DenseIndRNN,
    IndRNN,
    ResidualIndRNN,
    constrain_,
    constrain_after_step,
    init,
    recurrent_max_for,
)
from fastindrnn.optim import parameter_groups

CLASSES = 10
GRADIENT_CLIP = 10.0
WEIGHT_DECAY = 1e-4
INPUT_SLOPE = 8  # of kaiming_uniform_: weights of U(-b, b) with b^2 = 6 / (65 * inputs)
FIXED = {  # for the report
    "weight_decay": WEIGHT_DECAY,
    "gradient_clip": GRADIENT_CLIP,
    "input_weights": f"kaiming_uniform_, a = {INPUT_SLOPE}",
    "learning_rate_schedule": "constant",
    "validation": "the last twentieth of the training file",
}


class Network(nn.Module):
    """A stack read out at its last step; images (B, T) to logits (B, classes)."""

    def __init__(self, stack, features, dropout):
        super().__init__()
        self.stack, self.dropout = stack, dropout
        self.head = nn.Linear(features, CLASSES)
        for parameter in stack.parameters():
            if parameter.dim() == 2:
                nn.init.kaiming_uniform_(parameter, a=INPUT_SLOPE)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        output, _ = self.stack(rearrange(images, "b t -> b t 1"))
        # A mask over time, seen at one step, is a mask; the other stacks have it inside.
        return self.head(nn.functional.dropout(output[:, -1], self.dropout, self.training))


def make_learner(settings, length):
    torch.manual_seed(settings["seed"])
    stack, features, name = make_stack(settings, length)
    # The residual and the dense stack have dropout behind their last recurrence, the plain has not.
    dropout = settings["dropout"] if settings["model"] == "plain" else 0.0
    model = Network(stack, features, dropout).to(settings["device"])
    optimizer = torch.optim.Adam(parameter_groups(model, WEIGHT_DECAY), lr=settings["lr"])
    training.clip_before_step(optimizer, GRADIENT_CLIP)
    constrain_(stack)
    constrain_after_step(optimizer, stack)
    return training.Learner(name, model, optimizer, torch.Generator())


def make_stack(settings, length):
    """(the stack, its output features, what to call it)."""
    gamma, layers, hidden = settings["gamma"], settings["layers"], settings["hidden"]
    largest = recurrent_max_for(length, gamma)
    recurrences = {"plain": layers, "residual": 2 * layers + 1, "dense": 1 + 2 * layers + 3}
    starts = [partial(init.uniform_, high=largest)] * (recurrences[settings["model"]] - 1)
    options = {
        "batch_first": True,
        "dropout": settings["dropout"],
        "norm": "batch",
        "recurrent_max": largest,
        "recurrent_init": [*starts, partial(init.long_memory_, T=length, gamma=gamma)],
    }
    if settings["model"] == "plain":
        if layers == 1:
            options["dropout"] = 0.0  # it acts between layers
        return IndRNN(1, hidden, layers, **options), hidden, f"IndRNN {layers} x {hidden}"
    if settings["model"] == "residual":
        stack = ResidualIndRNN(1, hidden, layers, **options)
        return stack, hidden, f"residual IndRNN, {layers} blocks of 2 x {hidden}"
    stack = DenseIndRNN(1, hidden // 8, (8, 6, 4), **options)
    return stack, stack.output_size, f"dense IndRNN (8, 6, 4), growth {hidden // 8}"
