"""Which parameters weight decay acts on."""

import pytest
from torch import nn

from fastindrnn import DenseIndRNN, IndRNN
from fastindrnn.norm import StepBatchNorm
from fastindrnn.optim import parameter_groups


def test_parameter_groups_take_each_parameter_once():
    shared = nn.Linear(4, 4)
    module = nn.ModuleList(
        [
            IndRNN(3, 4, norm="batch"),
            DenseIndRNN(3, growth=2, blocks=(1,), norm="layer"),
            StepBatchNorm(4, 6),
            nn.LayerNorm((4, 4)),
            nn.RNN(4, 4),
            shared,
            shared,
        ]
    )
    decayed, kept = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    in_decayed, in_kept = ([names[id(p)] for p in group["params"]] for group in (decayed, kept))
    assert sorted(in_decayed + in_kept) == sorted(names.values())
    assert all("weight_ih" in n or n in ("4.weight_hh_l0", "5.weight") for n in in_decayed)
    assert {"0.weight_hh_l0", "0.bias_ih_l0", "0.norm_l0.weight", "3.weight"} <= set(in_kept)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight_decay must be at least 0, but is"):
            parameter_groups(module, wrong)
