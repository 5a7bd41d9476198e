"""The density of a pen's next move, and of what the pen does then: Graves 2013, arXiv 1308.0850,
equations 18 to 25, but for the pen, which may also end the character."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

GAUSSIANS = 20
GOES_ON, LIFTED, ENDS = PEN = range(3)  # what the pen does after a move
FEATURES = 6 * GAUSSIANS + len(PEN)  # of a network's output that say all
MOST_CORRELATED = 0.999  # a correlation of 1 has no density


class Mixture(NamedTuple):
    """K Gaussians over moves (x, y), for each time step of each sequence."""

    log_weights: Tensor  # (..., K)
    means: Tensor  # (..., K, 2)
    log_scales: Tensor  # (..., K, 2), of the standard deviations
    correlations: Tensor  # (..., K)
    log_pen: Tensor  # (..., 3), logarithms of the probabilities


def mixture_of(features):
    """The mixture that a network's output (..., FEATURES) describes."""
    K = GAUSSIANS
    weights, means, log_scales, correlations, pen = features.split([K, 2 * K, 2 * K, K, 3], -1)
    return Mixture(
        log_softmax(weights, -1),
        means.unflatten(-1, (K, 2)),
        log_scales.unflatten(-1, (K, 2)),
        MOST_CORRELATED * correlations.tanh(),
        log_softmax(pen, -1),
    )


def log_likelihood(mixture, moves, pen):
    """Of moves (..., 2) and what the pen does after each (...), in nats."""
    x, y = ((moves.unsqueeze(-2) - mixture.means) * (-mixture.log_scales).exp()).unbind(-1)
    rho = mixture.correlations
    rest = 1 - rho**2
    distances = (x**2 + y**2 - 2 * rho * x * y) / rest
    log_areas = math.log(2 * math.pi) + mixture.log_scales.sum(-1) + rest.log() / 2
    densities = mixture.log_weights - distances / 2 - log_areas
    return densities.logsumexp(-1) + mixture.log_pen.gather(-1, pen.unsqueeze(-1)).squeeze(-1)


def draw(mixture, bias, generator):
    """A move (N, 2) and what the pen does (N,), from mixtures of N. With a bias above 0 the likely
    Gaussians become likelier, and all of them narrower (equations 61 and 62)."""
    chances = ((1 + bias) * mixture.log_weights).softmax(-1)
    chosen = torch.multinomial(chances, 1, generator=generator)
    pen = torch.multinomial(mixture.log_pen.exp(), 1, generator=generator).squeeze(-1)
    means = mixture.means.take_along_dim(chosen.unsqueeze(-1), -2).squeeze(-2)
    log_scales = mixture.log_scales.take_along_dim(chosen.unsqueeze(-1), -2).squeeze(-2)
    rho = mixture.correlations.gather(-1, chosen).squeeze(-1)
    normal = torch.randn(means.shape, device=means.device, generator=generator)
    x, y = normal.unbind(-1)
    correlated = torch.stack((x, rho * x + (1 - rho**2).sqrt() * y), -1)
    return means + (log_scales - bias).exp() * correlated, pen
