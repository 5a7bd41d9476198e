"""`python -m bench tagging`: the words, the tags, and what counts in loss and accuracy."""

from itertools import combinations

import numpy as np
import pytest
import torch
from bench_command import refusal, write_sentences
from torch.nn.functional import cross_entropy

from bench.tasks import tagging
from bench.tasks.data import Shuffled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_sentences(folder, np.random.default_rng(1))
    return folder


def make_task(folder, **more):
    settings = {
        name.replace("-", "_"): default for name, (default, *_) in tagging.Tagging.SETTINGS.items()
    }
    settings |= {"device": "cpu", "data": str(folder), "parameters": None, "hidden": 8, "batch": 7}
    return tagging.Tagging(settings | more)


def test_sentences_are_read_and_known_by_their_spelling(folder, tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("\nA\tX\nb c\tY\n\n\nD\tZ\n")
    assert tagging.read(path) == [(("A", "b c"), ("X", "Y")), (("D",), ("Z",))]
    assert [text for _, text in tagging.spellings("Paris,1000")] == [
        *("paris,1000", "p", "pa", "par", "0", "00", "000", "1000", "Xx,9")
    ]
    task = make_task(folder, model=["indrnn"])
    sentences = [(("Anoun", "Qqq"), ("NOUN", "no tag"))]
    ((numbers, tags),) = task.encode(sentences)
    of_number = {number: spelling for spelling, number in task.numbers.items()}
    assert tuple(of_number[number] for number in numbers[0].tolist()) == tagging.spellings("Anoun")
    assert numbers[1].tolist() == [0] * 8 + [task.numbers[8, "Xx"]], "only the shape is known"
    assert tags.tolist() == [task.tags.index("NOUN"), len(task.tags)], "never right"


@pytest.mark.parametrize("content", ["", "word\n", "word\ttag\tmore\n"])
def test_another_file_gets_one_line(content, folder, tmp_path):
    for part in ("train", "dev", "test"):
        (tmp_path / f"ewt-{part}.tsv").write_text(content)
    assert str(tmp_path / "ewt-train.tsv") in refusal("tagging", "--data", tmp_path)
    (tmp_path / "ewt-train.tsv").unlink()
    assert "UD_English-EWT" in refusal("tagging", "--data", tmp_path)


@pytest.mark.parametrize("model", ["residual", "bi-indrnn", "bi-lstm"])
def test_padding_never_counts(model, folder):
    """Loss and accuracy are those of a plain loop over sentences, each alone."""
    task = make_task(folder, model=[model], batch=40)  # of all lengths
    (learner,) = task.learners
    network = learner.model.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.5, 0.5)
        total = words = 0
        for index in task.shuffled(3).tolist():
            numbers, tags = task.parts["train"][index]
            logits = network(numbers.unsqueeze(0), torch.tensor([len(tags)]))
            total += cross_entropy(logits[0], tags, reduction="sum")
        mean_words = sum(len(tags) for _, tags in task.parts["train"]) / 40
        expected = total / (40 * mean_words)
        torch.testing.assert_close(task.loss_of_step(learner, 3)["loss"], expected)
        right = words = 0
        for numbers, tags in task.parts["validation"]:
            logits = network(numbers.unsqueeze(0), torch.tensor([len(tags)]))
            right += (logits[0].argmax(1) == tags).sum().item()
            words += len(tags)
        assert task.evaluate(network) == {"accuracy": right / words}


@pytest.mark.parametrize(("model", "sees_it"), [("residual", False), ("bi-residual", True)])
def test_one_direction_does_not_see_the_last_word(model, sees_it, folder):
    network = make_task(folder, model=[model]).learners[0].model.eval()
    numbers, lengths = torch.randint(1, 9, (1, 5, 9)), torch.tensor([5])
    other = numbers.clone()
    other[0, 4] += 1
    one, two = (network(each, lengths)[0, 0] for each in (numbers, other))
    assert torch.equal(one, two) != sees_it


def test_a_word_that_is_left_out_is_known_by_its_spelling(folder):
    options = {"model": ["indrnn"], "dropout": 0.0, "word_dropout": 1.0}
    network = make_task(folder, **options).learners[0].model
    numbers, lengths = torch.randint(1, 9, (2, 5, 9)), torch.tensor([5, 5])
    other, spelled = numbers.clone(), numbers.clone()
    other[..., 0] += 1
    spelled[..., 1] += 1
    assert torch.equal(network(numbers, lengths), network(other, lengths))
    assert not torch.equal(network(numbers, lengths), network(spelled, lengths))
    network.eval()
    assert not torch.equal(network(numbers, lengths), network(other, lengths))


def test_a_step_has_sentences_of_similar_length():
    """Each once in an epoch, in any order of calls, and not always the same ones together."""
    # Of short sentences too few seem as long as others for always different ones to meet.
    lengths = torch.randint(20, 50, (200,))
    settings = {"batch": 8, "seed": torch.randint(1000, ()).item(), "device": "cpu"}
    shuffled = Shuffled(200, settings, lengths)
    assert shuffled.steps == 25
    epochs = [[shuffled(25 * epoch + step) for step in range(25)] for epoch in range(2)]
    for epoch in epochs:
        assert torch.cat(epoch).sort()[0].tolist() == list(range(200))
        padded = sum(len(part) * lengths[part].max().item() for part in epoch)
        assert padded < 1.3 * lengths.sum().item()
        for one, two in combinations((lengths[part] for part in epoch), 2):
            # The shorter ones seem up to a fifth longer than they are.
            assert 5 * min(one.max(), two.max()) <= 6 * max(one.min(), two.min())
    met = [{frozenset(part.tolist()) for part in epoch} for epoch in epochs]
    assert not met[0] & met[1]
    assert torch.equal(Shuffled(200, settings, lengths)(37), epochs[1][12])
