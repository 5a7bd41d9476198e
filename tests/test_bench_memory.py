"""`python -m bench memory`: the gradients that are drawn; and where the relu networks start."""

import pytest
import torch
from bench_command import SMALL, refusal, report, run

from bench.tasks import memory, models


def test_the_gradient_falls_as_the_power_of_u():
    """All neurons active: k steps before the last one it is u^k of that at the last one."""
    settings = {
        name.replace("-", "_"): default for name, (default, *_) in memory.Memory.SETTINGS.items()
    }
    changed = {"device": "cpu", "model": ["indrnn"], "gammas": ["5"], "layers": 2, "length": 12}
    task = memory.Memory(settings | changed | {"hidden": 4})
    model = task.learners[0].model
    for layer, u in zip(model.layers, (0.5, 0.9), strict=True):
        torch.nn.init.uniform_(layer.weight_ih_l0, 0.1, 1.0)
        torch.nn.init.ones_(layer.bias_ih_l0)
        torch.nn.init.constant_(layer.weight_hh_l0, u)
    found = task.relative_gradients(model)
    back = torch.arange(11, -1, -1)
    torch.testing.assert_close(found[1], 0.9**back)
    # Through both layers: the sum of 0.9^i 0.5^j over all i + j = k.
    both = torch.stack([sum(0.9**i * 0.5 ** (k - i) for i in range(k + 1)) for k in back])
    torch.testing.assert_close(found[0], both)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    more = ["--model", "indrnn,lstm", "--gammas", "1,10", "--layers", 2, "--length", 20]
    run("memory", *SMALL, *more, "--steps", 10, "--out", folder)
    return folder, report(folder)


def test_each_bound_is_the_one_of_its_gamma(finished):
    folder, content = finished
    names = ["indrnn 2 x 8", "lstm 2 x 8"]
    others = ["indrnn 2 x 8, gamma 1", "indrnn 2 x 8, gamma 10"]
    assert list(content["models"]) == names
    assert list(content["bounds"]) == others
    assert {path.stem for path in folder.glob("*.png")} == {
        "curves",
        "gradients",
        "bounds",
        "remembered",
    }
    states = torch.load(folder / "checkpoint.pt", weights_only=True)["learners"]
    for name, gamma in zip([names[0], *others], (2, 1, 10), strict=True):
        u = states[name]["model"]["layers.1.weight_hh_l0"]
        assert gamma ** (-1 / 20) - 0.1 < u.min() <= u.max() <= gamma ** (1 / 20) + 1e-6
    for name in names[:2]:
        for when in "before", "after":
            shares = content["models"][name][f"gradient at first step, {when}"]
            assert len(shares) == 2
            assert all(0 < share < 10 for share in shares)


def test_without_an_indrnn_there_is_nothing_to_draw(tmp_path):
    assert "--model must name indrnn" in refusal("memory", *SMALL, "--model", "lstm")


@pytest.mark.parametrize(("kind", "scale"), [("irnn", 1.0), ("irnn-small", 0.01)])
def test_relu_networks_start_from_the_identity(kind, scale):
    torch.manual_seed(0)
    cells = models.make(kind, 3, 5, 2).cells
    assert cells.nonlinearity == "relu"
    for layer in range(2):
        assert torch.equal(getattr(cells, f"weight_hh_l{layer}"), scale * torch.eye(5))
        assert getattr(cells, f"weight_ih_l{layer}").abs().max() < 0.01
        assert not getattr(cells, f"bias_hh_l{layer}").any()


def test_a_relu_network_that_starts_as_pytorch_lets_it():
    torch.manual_seed(0)
    cells = models.make("irnn-uniform", 3, 5, 2).cells
    torch.manual_seed(0)
    plain = torch.nn.RNN(3, 5, 2, nonlinearity="relu", batch_first=True)
    assert cells.nonlinearity == "relu"
    for ours, theirs in zip(cells.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
