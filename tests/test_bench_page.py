"""Which runs are one row of the page of results, and what stands in it."""

import json

import pytest

from bench import page


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    return tmp_path


def test_who_did_not_reach_the_target_is_shown_with_his_steps(results):
    settings = {"model": ["indrnn", "lstm"], "length": 100, "target": 0.01}
    models = {
        name: {"parameters": 5, "seconds": 1.0, "steps": steps, "steps_to_target": target}
        for name, steps, target in (("indrnn 1 x 8", 300, 300), ("lstm 1 x 8", 1600, None))
    }
    for model in models.values():
        model["running_loss"] = 0.5
    environment = {"device_name": "a machine", "date": "2026-01-02T03", "load_average": 0.0}
    report = {"task": "adding", "title": "sums", "environment": environment}
    (results / "sums.json").write_text(
        json.dumps(report | {"settings": settings, "models": models})
    )
    row = page.summary(page.experiments()).splitlines()[-1]
    assert row.endswith("| 300 | 1,500 | lstm 1 x 8: not in 1,600 steps |")


def write_run(folder, name, accuracies, **changed):
    """The report of a run of MNIST with these accuracies after its epochs."""
    settings = {"model": ["indrnn"], "layers": 6, "hidden": 128, "limit_train": None, "seed": 0}
    settings |= {"permuted": False, "epochs": len(accuracies), "steps": 10 * len(accuracies)}
    lines = [{"accuracy": x, "accuracy, running norms": x / 2} for x in accuracies]
    model = {"parameters": 1234, "seconds": 60.0, "validations": lines, "test": lines[-1]}
    environment = {"device_name": "a machine", "date": "2026-01-02T03", "load_average": None}
    report = {"task": "mnist", "title": "digits", "environment": environment}
    report |= {"settings": settings | changed, "models": {"indrnn 6 x 128": model}}
    (folder / f"{name}.json").write_text(json.dumps(report))


def test_runs_that_differ_by_the_seed_and_the_epochs_are_one_row(results):
    """Each figure is the mean of the runs that have it."""
    write_run(results, "first", [0.5, 0.625, 0.75])
    write_run(results, "second", [0.25, 0.375], seed=1)
    write_run(results, "wide", [0.125], hidden=256)
    found = page.experiments()
    assert sorted(sorted(reports) for _, reports in found) == [["first", "second"], ["wide"]]
    ((name, parameters, seconds, figures),) = next(
        page.rows(*each) for each in found if "first" in each[1]
    )
    assert (name, parameters, seconds) == ("indrnn 6 x 128", 1234, 60)
    assert figures["accuracy, epoch 1"] == ("37.5% (2 seeds, 25.0% to 50.0%)", "77.7%")
    assert figures["accuracy, epoch 2"] == ("50.0% (2 seeds, 37.5% to 62.5%)", "85.1%")
    assert figures["accuracy, epoch 3"] == ("75.0% (1 of 2 seeds)", "")
    assert figures["accuracy, test, epoch 3"] == ("75.0% (1 of 2 seeds)", "")
    assert figures["accuracy, test, epoch 2"] == ("37.5% (1 of 2 seeds)", "")
    assert figures["accuracy, running norms, epoch 1"][0].startswith("18.8%")


def test_the_summary_shows_what_somebody_has_published(results):
    """The last such figure; without the runs that only explain another, and those too short."""
    write_run(results, "first", [0.5, 0.625, 0.75])
    write_run(results, "ablation-first", [0.125], gamma=2.0)
    write_run(results, "short-first", [0.25], gamma=3.0)
    row = "| digits | indrnn 6 x 128 | 1,234 | accuracy, epoch 2 | 62.5% | 85.1% |  |"
    assert page.summary(page.experiments()).splitlines()[2:] == [row]
    text = page.page(page.experiments())
    assert text.count("### digits") == 1
    assert "[ablation-first](../bench/results/ablation-first.json)" in text
    assert "62.5% (published: 85.1%)" in text
    assert "load not known, 2026-01-02" in text


def test_a_negative_figure_is_a_figure(results):
    write_run(results, "first", [-0.5])
    text = page.page(page.experiments()), page.summary(page.experiments())
    assert "| -50.0% (published: 77.7%) |" in text[0]
    assert "| accuracy, epoch 1 | -50.0% | 77.7% |" in text[1]
