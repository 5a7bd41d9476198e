"""Forecast of a series: train on all but its last steps, then let the model go on by itself.

    python examples/forecast.py [--data FILE] [--steps 400] [--horizon 24]

FILE has one number a line. Without it the series is generated: a trend, two seasons and noise. The
error stands beside that of the forecast that repeats the last season.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import nn

from fastindrnn import IndRNN, constrain_after_step, recurrent_max_for


def generated(length=240):
    t = torch.arange(length)
    seasons = 10 * torch.sin(t * 6.283 / 12) + 4 * torch.cos(t * 6.283 / 6)
    return 100 + 0.4 * t + seasons + torch.randn(length)


class Forecaster(nn.Module):
    """The change over a season so far (B, T, 1) to the next one (B, T, 1)."""

    def __init__(self, longest) -> None:
        super().__init__()
        bound = recurrent_max_for(longest)
        self.recurrent = IndRNN(1, 32, 2, batch_first=True, recurrent_max=bound, grad_clip=10.0)
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])

    @torch.no_grad()
    def go_on(self, x, horizon):
        """The values (horizon,) after x (T, 1): each forecast is the next step's input."""
        output, state = self.recurrent(x[None])
        found = [self.head(output[:, -1])]
        for _ in range(horizon - 1):
            output, state = self.recurrent.step(found[-1], state)
            found.append(self.head(output))
        return torch.cat(found)[:, 0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--horizon", type=int, default=24)
    parser.add_argument("--season", type=int, default=12)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    series = generated()
    if args.data is not None:
        series = torch.tensor([float(line) for line in args.data.read_text().split()])
    season, known, future = args.season, series[: -args.horizon], series[-args.horizon :]
    changes = known[season:] - known[:-season]
    mean, scale = changes.mean(), changes.std().clamp(min=1e-6)  # a series may just repeat
    x = rearrange((changes - mean) / scale, "t -> t 1")

    model = Forecaster(len(series))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    constrain_after_step(optimizer, model)
    for _ in range(args.steps):
        loss = nn.functional.mse_loss(model(x[None, :-1]), x[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    changes = model.go_on(x, args.horizon) * scale + mean
    forecast, naive = list(known), list(known)
    for change in changes:
        forecast.append(forecast[-season] + change)
        naive.append(naive[-season])
    errors = [
        (torch.stack(values[-args.horizon :]) - future).abs().mean().item()
        for values in (forecast, naive)
    ]
    print(
        f"mean error over {args.horizon} steps: {errors[0]:.2f}; the last season: {errors[1]:.2f}"
    )
    return errors


if __name__ == "__main__":
    main()
