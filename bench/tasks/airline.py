"""Train networks to forecast the airline passengers of the last two years, and other ways beside.

144 monthly numbers, 1949 to 1960, in thousands (Box and Jenkins 1976); sktime and aeon ship them.
The networks read the changes of the logarithm from month to month, and tell at each month those of
the next 24; that there is a season they must find out. They are trained on the first 120 months
alone, with noise added to what they read, and forecast the last 24 at the end of these. The figure
is the root mean square error in thousands of passengers. Beside it stand those of the last year
repeated, which is the seasonal-naive forecast, and of Box and Jenkins' model of this series, ARIMA
(0, 1, 1)(0, 1, 1) with a season of 12 months of the logarithm, as statsmodels fits it. The settings
were chosen by forecasts of earlier years: --history 72, 84 and 96.
"""

import functools
import math
import sys
import warnings
from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, models
from bench.tasks.run import Task

YEAR, AHEAD = 12, 24  # months
DEPTHS = range(1, 7)
NETWORKS = tuple(f"{kind}-{layers}" for kind in models.KINDS for layers in DEPTHS)


class Airline(Task):
    form, data_label = "{:.1f}", "144 months of Box and Jenkins; errors in thousands"
    gradient_norm, rate_falls = 1.0, True
    SETTINGS: ClassVar = Task.SETTINGS | {
        "data": data.SETTING,
        "model": (
            ["indrnn-3", "indrnn-1", "lstm-1"],
            arguments.several(NETWORKS),
            f"some of {', '.join(models.KINDS)}; behind each a hyphen and how many layers",
        ),
        "hidden": (64, *Task.SETTINGS["hidden"][1:]),
        "steps": (600, *Task.SETTINGS["steps"][1:]),
        "batch": (8, arguments.integer(1), "copies of the series, each with noise of its own"),
        "history": (120, arguments.integer(AHEAD + 2 * YEAR), "months to train on"),
        "noise": (0.3, arguments.at_least_zero, "standard deviation; the changes have 1"),
        "lr": (3e-3, *Task.SETTINGS["lr"][1:]),
        "weight-decay": (1e-4, *Task.SETTINGS["weight-decay"][1:]),
    }
    del SETTINGS["layers"]

    def prepare(self):
        settings = self.settings
        months, passengers = read(data.find_shipped(settings, "Airline", "Airline.csv"))
        end = settings["history"] + AHEAD
        if end > len(months):
            raise UserError(f"--history must be at most {len(months) - AHEAD} of the {len(months)}")
        self.title = f"Airline passengers, {months[settings['history']]} to {months[end - 1]}"
        self.months, self.passengers = months[:end], passengers[:end]
        self.history = self.passengers[: settings["history"]]
        changes = self.history.log().diff()
        self.mean, self.scale = changes.mean(), changes.std()
        self.changes = ((changes - self.mean) / self.scale).float().to(settings["device"])

    def layers_of(self, kind):
        return None  # the network's name says how many

    def make_model(self, kind, hidden, layers):
        return Forecaster(kind, hidden, self.settings)

    def loss_of_step(self, learner, step):
        """The mean squared error of the changes that a month tells, from the second year on."""
        read = self.changes
        answers = torch.cat([read[1:], read.new_full((AHEAD,), torch.nan)]).unfold(0, AHEAD, 1)
        is_known = answers.isfinite()
        is_known[: YEAR - 1] = False
        generator = data.generator(self.settings, step)
        options = {"device": read.device, "generator": generator}
        noise = torch.randn(self.settings["batch"], len(read), **options)
        told = learner.model(read + self.settings["noise"] * noise)
        return {"loss": (told - answers)[:, is_known].square().mean()}

    def evaluate(self, model):
        _, forecast = self.fit_and_forecast(model)
        return {"error": self.error(forecast)}

    def finish(self, model):
        fit, forecast = self.fit_and_forecast(model)
        return {"fit": fit.tolist(), "forecast": forecast.tolist(), "others": self.others}

    @functools.cached_property
    def others(self):
        """{name: error and forecast} of those that are no networks; None for what is missing."""
        found = {"seasonal naive": seasonal_naive(self.history), "ARIMA": arima(self.history)}
        return {
            name: None
            if forecast is None
            else {"error": self.error(forecast), "forecast": forecast.tolist()}
            for name, forecast in found.items()
        }

    def error(self, forecast):
        held_out = self.passengers[len(self.history) :]
        return (forecast - held_out).square().mean().sqrt().item()

    def fit_and_forecast(self, model):
        """Passengers of the months of the history from the third on, each as the month before tells
        it; and of the AHEAD months behind the history."""
        told = model(self.changes[None])[0].double().cpu() * self.scale + self.mean
        fit = self.history[1:-1] * told[:-1, 0].exp()
        return fit, self.history[-1] * told[-1].cumsum(0).exp()

    @classmethod
    def measured(cls, settings, result):
        others = {name: each and each["error"] for name, each in result.get("others", {}).items()}
        lines = result["validations"]
        return others | {"error": lines[-1]["error"] if lines else None}

    def plots(self):
        return super().plots() | {"forecast": self.draw_forecast}

    def draw_forecast(self, figure):
        """The passengers, and for each network its fit and its forecast."""
        axes = figure.subplots()
        places = range(len(self.passengers))
        axes.plot(places, self.passengers, color="black", label="passengers")
        axes.axvline(len(self.history) - 0.5, color="grey", linestyle=":")
        for index, learner in enumerate(self.learners):
            if final := learner.final:
                color = f"C{index}"
                axes.plot(places[2 : len(self.history)], final["fit"], color=color, alpha=0.4)
                label = f"{learner.name}: error {learner.validations[-1]['error']:.1f}"
                axes.plot(places[-AHEAD:], final["forecast"], color=color, label=label)
        others = self.learners[-1].final.get("others", {})
        for (name, each), style in zip(others.items(), ("--", "-."), strict=False):
            if each:
                label = f"{name}: error {each['error']:.1f}"
                axes.plot(places[-AHEAD:], each["forecast"], style, color="grey", label=label)
        axes.set_xticks(places[::YEAR], [month[:4] for month in self.months[::YEAR]])
        axes.set(ylabel="thousands of passengers")
        axes.grid(alpha=0.3)
        axes.legend()


class Forecaster(nn.Module):
    """Changes (B, T) to the next AHEAD changes at each of them (B, T, AHEAD)."""

    def __init__(self, network, hidden, settings):
        super().__init__()
        kind, layers = network.rsplit("-", 1)
        ours = {"norm": None, "recurrent_max": 1.0} if kind in models.OURS else {}
        self.recurrent = models.make(
            kind, 1, hidden, int(layers), dropout=settings["dropout"], **ours
        )
        self.head = nn.Linear(self.recurrent.output_size, AHEAD)

    def forward(self, changes):
        return self.head(self.recurrent(changes.unsqueeze(-1))[0])


def read(path):
    """(Months as 1949-01, passengers as float64)."""
    try:
        _, *lines = path.read_text().split()
        months, numbers = zip(*(line.split(",") for line in lines), strict=True)
        return months, torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    except ValueError:
        raise UserError(f"{path} does not hold lines of month, comma and number") from None


def seasonal_naive(history):
    """Each month as it was in the last year of the history."""
    return history[-YEAR:].repeat(math.ceil(AHEAD / YEAR))[:AHEAD]


def arima(history):
    """The forecast of Box and Jenkins' model; None, and a line, where there is no statsmodels."""
    try:
        from statsmodels.tsa.statespace.sarimax import SARIMAX
    except ModuleNotFoundError:
        print("no ARIMA beside it: statsmodels is not installed", file=sys.stderr)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of where its search starts
        model = SARIMAX(history.log().numpy(), order=(0, 1, 1), seasonal_order=(0, 1, 1, YEAR))
        logarithms = model.fit(disp=False).forecast(AHEAD)
    return torch.from_numpy(logarithms).exp()


add_arguments, run = Airline.add_arguments, Airline.run
