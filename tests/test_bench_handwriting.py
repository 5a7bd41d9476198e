"""`python -m bench handwriting`: the density of a move, draws from it, and the characters."""

import math

import numpy as np
import pytest
import torch
from bench_command import refusal, write_characters
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from bench.tasks import handwriting, mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    write_characters(folder, np.random.default_rng(1))
    return folder


def make_task(folder, **more):
    settings = {
        name.replace("-", "_"): default
        for name, (default, *_) in handwriting.Handwriting.SETTINGS.items()
    }
    settings |= {"device": "cpu", "data": str(folder), "parameters": None, "hidden": 8, "batch": 7}
    return handwriting.Handwriting(settings | more)


def covariances(m):
    """(..., K, 2, 2), from scales and correlations."""
    scales = m.log_scales.exp()
    off = m.correlations * scales.prod(-1)
    x, y = (scales**2).unbind(-1)
    return torch.stack((x, off, off, y), -1).unflatten(-1, (2, 2))


def test_likelihood_is_that_of_torch_distributions():
    features = torch.randn(3, 4, mixture.FEATURES, dtype=torch.float64)
    moves, pen = torch.randn(3, 4, 2, dtype=torch.float64), torch.randint(3, (3, 4))
    m = mixture.mixture_of(features)
    of_moves = MixtureSameFamily(
        Categorical(logits=features[..., : mixture.GAUSSIANS]),
        MultivariateNormal(m.means, covariances(m)),
    )
    of_pen = Categorical(logits=features[..., -3:])
    expected = of_moves.log_prob(moves) + of_pen.log_prob(pen)
    torch.testing.assert_close(mixture.log_likelihood(m, moves, pen), expected)


def test_draws_have_the_moments_of_the_mixture():
    features = torch.randn(mixture.FEATURES, generator=torch.Generator().manual_seed(3))
    features[features[: mixture.GAUSSIANS].argmax()] += 1  # the second with a bias: never
    m = mixture.mixture_of(features.expand(40000, -1))
    moves, pen = mixture.draw(m, 0.0, torch.Generator().manual_seed(4))
    weights, means = m.log_weights[0].exp(), m.means[0]
    mean = weights @ means
    outer = torch.einsum("ki,kj->kij", means - mean, means - mean) + covariances(m)[0]
    covariance = torch.einsum("k,kij->ij", weights, outer)
    error = 5 * covariance.diagonal().max().sqrt() / 200  # five standard errors of the mean
    torch.testing.assert_close(moves.mean(0), mean, atol=error.item(), rtol=0)
    torch.testing.assert_close(
        moves.T.cov(), covariance, atol=0.1 * covariance.max().item(), rtol=0
    )
    shares = torch.bincount(pen, minlength=3) / 40000
    torch.testing.assert_close(shares, m.log_pen[0].exp(), atol=5 * 0.5 / 200, rtol=0)
    drawn, _ = mixture.draw(m, 20.0, torch.Generator().manual_seed(4))
    likeliest = means[weights.argmax()]
    torch.testing.assert_close(drawn, likeliest.expand_as(drawn), atol=1e-3, rtol=0)


def test_characters_are_read_without_their_first_row_and_end(folder):
    parts = handwriting.read(folder / handwriting.FILE)
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [40, 10, 10]
    with np.load(folder / handwriting.FILE, allow_pickle=True) as file:
        for rows, character in zip(file["train"], parts["train"], strict=True):
            assert np.array_equal(rows[1:, :2], character[:, :2])
            assert np.array_equal(rows[1:-1, 2], character[:-1, 2])
            assert character[-1, 2] == mixture.ENDS


def test_another_file_gets_one_line(folder, tmp_path):
    assert "sketch-rnn-datasets" in refusal("handwriting", "--data", tmp_path)
    (tmp_path / handwriting.FILE).write_bytes(b"nothing")
    assert "does not hold characters" in refusal("handwriting", "--data", tmp_path)
    np.savez(tmp_path / handwriting.FILE, train=np.zeros(3))
    assert "does not hold characters" in refusal("handwriting", "--data", tmp_path)


@pytest.mark.parametrize("model", ["residual", "lstm"])
def test_padding_never_counts(model, folder):
    """Loss and figure are those of a plain loop over characters; the figure is the same again."""
    task = make_task(folder, model=[model], batch=40)  # of all lengths
    (learner,) = task.learners
    network = learner.model.eval()
    characters = [task.parts["train"][index] for index in task.shuffled(3).tolist()]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        moves, pen, lengths = task.batch(characters, generator)
        total = 0.0
        for index, length in enumerate(lengths.tolist()):
            one, after = moves[index : index + 1, :length], pen[index : index + 1, :length]
            known = torch.zeros(1, length, handwriting.INPUTS)
            known[:, 1:] = handwriting.encode(one, after)[:, :-1]
            total -= mixture.log_likelihood(network(known)[0], one, after).sum()
        mean_moves = sum(len(character) for character in task.parts["train"]) / 40
        torch.testing.assert_close(task.loss_of_step(learner, 3)["loss"], total / (40 * mean_moves))
        assert task.evaluate(network) == task.evaluate(network)
    noise = moves[0, : lengths[0]] * task.scale - characters[0][:, :2]
    assert 0 < noise.abs().max() <= 3.01, "half a pixel"
    assert math.isclose(torch.cat(task.parts["train"])[:, :2].std(), task.scale, rel_tol=1e-6)


@pytest.mark.parametrize("model", ["residual", "lstm", "gru"])
def test_a_character_is_continued(model, folder, monkeypatch):
    """Each move is drawn from the density that one pass over the whole character gives it."""
    task = make_task(folder, model=[model])
    network = task.learners[0].model.eval()
    moves, pen = torch.randn(1, 3, 2), torch.tensor([[0, 1, 0]])
    draw, seen = mixture.draw, []
    monkeypatch.setattr(mixture, "draw", lambda *args: seen.append(args[0]) or draw(*args))
    with torch.no_grad():
        network.head.bias[-3:] = torch.tensor([2.0, 0.0, 0.0])  # or it would soon end
        generator = torch.Generator().manual_seed(6)
        written, after = network.write(moves, pen, 30, 0.0, generator)
        whole, _ = network(handwriting.behind_start(written, after))
    assert torch.equal(written[:, :3], moves)
    assert torch.equal(after[:, :3], pen)
    assert 3 < written.shape[1] == 3 + len(seen) <= 30
    assert (after[0, :-1] != mixture.ENDS).all()
    assert written.shape[1] == 30 or after[0, -1] == mixture.ENDS
    for place, densities in enumerate(seen, start=3):
        for one, other in zip(densities, whole, strict=True):
            torch.testing.assert_close(one, other[:, place])


def test_characters_are_begun_by_real_ones_or_free(folder):
    task = make_task(folder, model=["residual"])
    real = max(task.parts["test"], key=len)
    (free, none), (begun, two) = task.written(task.learners[0].model, [real[:0], real[:2]])
    assert (none, two) == (0, 2)
    assert len(free) >= 1
    assert len(begun) > 2
    assert (begun[:2, :2] - real[:2, :2]).abs().max() <= 3.01, "but for the noise"
