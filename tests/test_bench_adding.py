"""The adding problem: its data, its report, and the figure of all its runs."""

import re

import pytest
import torch
from bench_command import ADDING, checkpoint, report, run

from bench.tasks import adding


def test_adding_writes_report_plot_and_lines(tmp_path):
    more = ["--steps", "120", "--model", "indrnn,lstm,irnn", "--other-steps", "30"]
    output, _ = run(*ADDING, *more, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "report.json",
        "curves.png",
    }
    content, states = report(tmp_path), checkpoint(tmp_path)["learners"]
    assert list(content["models"]) == list(states) == ["indrnn 2 x 8", "lstm 2 x 8", "irnn 2 x 8"]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    assert content["settings"]["length"] == 20
    losses, result = states["indrnn 2 x 8"]["series"]["loss"], content["models"]["indrnn 2 x 8"]
    assert result["steps"] == len(losses) == 120
    assert result["curve"] == [{"step": 100, "loss": pytest.approx(sum(losses[:100]) / 100)}]
    assert result["running_loss"] == pytest.approx(sum(losses[20:]) / 100)
    assert result["seconds"] > 119 * result["median_step_seconds"] / 2 > 0
    assert content["models"]["lstm 2 x 8"]["steps"] == 30
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"
    assert re.search(
        r"indrnn 2 x 8 step +110  loss \d\.\d+, mean of 100 \d\.\d+  \d+\.\d ms/step", output
    )


def test_adding_stops_at_the_target(tmp_path):
    run(*ADDING, "--target", 100, "--steps", 500, "--out", tmp_path)
    (result,) = report(tmp_path)["models"].values()
    assert result["outcome"] == "target reached"
    assert result["steps"] == result["steps_to_target"] == 100


def test_the_figure_of_all_lengths_shows_every_network_and_seed(tmp_path):
    """A panel for each length; the errors drawn are those of the reports."""
    short, longer = tmp_path / "short", tmp_path / "longer"
    run(*ADDING, "--steps", 100, "--out", short)
    run(*ADDING, "--length", 30, "--steps", 110, "--model", "indrnn,rnn", "--out", longer)
    reports = [report(longer), report(longer), report(short)]
    reports[2]["models"]["indrnn 2 x 8"]["curve"] = [{"step": 100, "loss": 0.125}]
    figure = pytest.importorskip("matplotlib.figure").Figure()
    (draw,) = [draw for _, draw in adding.Adding.overview(reports).values()]
    draw(figure)
    short, long = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["T = 20", "T = 30"]
    assert [line.get_ydata()[0] for line in short.lines] == [0.125, adding.CHANCE]
    assert len(long.lines) == 2 * 2 + 1
    assert [text.get_text() for text in long.get_legend().get_texts()] == [
        "indrnn",
        "rnn",
        "always answering 1",
    ]


@pytest.mark.parametrize("length", [2, 3, 9])
def test_adding_data_are_exact(length):
    """One mark in each half, numbers in [0, 1), the answer the sum of the marked ones."""
    generator, marked = torch.Generator().manual_seed(1), set()
    for _ in range(200):
        inputs, answers = adding.make_batch(5, length, generator)
        numbers, marks = inputs.unbind(-1)
        assert inputs.shape == (5, length, 2)
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert ((marks == 0) | (marks == 1)).all()
        for half in marks[:, : length // 2], marks[:, length // 2 :]:
            assert (half.sum(1) == 1).all()
        torch.testing.assert_close((numbers * marks).sum(1, keepdim=True), answers)
        marked |= set(marks.nonzero()[:, 1].tolist())
    assert marked == set(range(length))
