"""Character language models: a text is read as one, and the figure is bits per character."""

import pytest
import torch
from bench_command import write_data

from bench.tasks import chars
from bench.tasks.data import generator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("chars") / "data")


def test_bits_per_character_are_those_of_a_plain_loop(monkeypatch):
    """Every character but each reader's first is predicted once, from the state carried to it."""
    monkeypatch.setattr(chars, "EVALUATION_BATCH", 2)
    monkeypatch.setattr(chars, "EVALUATION_LENGTH", 5)
    settings = {"norm": None, "bound": 0.99, "dropout": 0.0, "length": 4}
    torch.manual_seed(0)
    model = chars.LanguageModel("indrnn", 7, 8, 2, settings).eval()
    text = torch.randint(7, (2 * 13,))
    logits, _ = model(text.view(2, 13)[:, :-1])
    chances = logits.softmax(-1).gather(-1, text.view(2, 13)[:, 1:, None])
    with torch.no_grad():
        assert chars.mean_bits(model, text) == pytest.approx(-chances.log2().mean().item())


def test_the_chunks_of_a_text_are_read_as_one(data):
    """The state is carried from chunk to chunk, and each reader's next character is told."""
    settings = {name.replace("-", "_"): each[0] for name, each in chars.Chars.SETTINGS.items()}
    settings |= {"model": ["indrnn"], "norm": None, "parameters": 2000, "device": "cpu"}
    task = chars.Chars(settings | {"data": data, "batch": 3, "length": 10})
    (learner,) = task.learners
    losses = [task.loss_of_step(learner, step)["loss"].item() for step in range(3)]
    first = torch.randint(10, (), generator=generator(task.settings, 0)).item()
    symbols = task.readers[:, first : first + 31]
    logits, _ = learner.model(symbols[:, :-1])
    for step, loss in enumerate(losses):
        part = slice(10 * step, 10 * step + 10)
        expected = chars.bits(logits[:, part], symbols[:, 1:][:, part]).item()
        assert loss == pytest.approx(expected, rel=1e-5)
    task.loss_of_step(learner, task.chunks)  # the text from its beginning: the states are zeros
    begun = learner.carried[0]
    learner.carried = ()
    task.loss_of_step(learner, task.chunks)
    assert torch.equal(learner.carried[0], begun)


def test_each_character_model_has_layers_and_a_rate_of_its_own(data):
    settings = {name.replace("-", "_"): each[0] for name, each in chars.Chars.SETTINGS.items()}
    settings |= {"parameters": 20_000, "device": "cpu", "data": data, "batch": 3, "length": 10}

    def depths(**given):
        learners = chars.Chars(settings | given).learners
        return [learner.name.rsplit(" x ", 1)[0] for learner in learners]

    models = ["residual", "indrnn", "lstm"]
    assert depths(model=models) == ["residual 3", "indrnn 6", "lstm 2"]
    assert depths(model=models, layers=1) == ["residual 1", "indrnn 1", "lstm 1"]
    task = chars.Chars(settings | {"model": models})
    assert [task.learning_rate(learner, 0) for learner in task.learners] == [4e-3, 4e-3, 8e-3]
    half = {"model": models, "lr": 1e-3, "steps": 3000, "seconds": None}
    task = chars.Chars(settings | half)
    assert [task.learning_rate(learner, 1500) for learner in task.learners] == [5e-4] * 3
