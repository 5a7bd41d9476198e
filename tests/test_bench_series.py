"""The tasks on series of numbers: files as they are published, losses, figures, what is changed at
random."""

import math

import numpy as np
import pytest
import torch
from bench_command import SMALL, refusal, report, run, skeleton_file, ts_file, write_series

from bench.arguments import UserError
from bench.tasks import airline, ntu, series, skeleton, speech, vowels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, np.random.default_rng(0))
    return folder


def make(task, folder, **changed):
    settings = {
        name.replace("-", "_"): default for name, (default, *_) in task.SETTINGS.items()
    } | dict.fromkeys(task.FLAGS, False)
    small = {"device": "cpu", "data": str(folder), "hidden": 8, "parameters": None}
    return task(settings | small | changed)


# Files.


def test_ts_files_are_read(tmp_path):
    rows = [
        (np.random.default_rng(1).normal(size=(2, length)), label)
        for length, label in ((3, "b"), (5, "a"))
    ]
    (tmp_path / "a.ts").write_text(ts_file(rows))
    found, labels, _ = series.load(tmp_path / "a.ts")
    assert labels == ["b", "a"]
    for values, (expected, _) in zip(found, rows, strict=True):
        np.testing.assert_allclose(values, expected.T, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "@data\n", "1,2:3,4:a\n", "@data\n1,2:3:a\n", "@data\n1,x:a\n", "@data\n1:a\n1:2:a\n"],
)
def test_ts_files_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "a.ts").write_text(text)
    with pytest.raises(UserError, match=r"a\.ts is no \.ts file"):
        series.load(tmp_path / "a.ts")


def test_skeleton_files_are_read(tmp_path):
    """Two of three bodies, those that move most; the first one's spine is the origin."""
    rng = np.random.default_rng(2)
    chair, little, much = (rng.normal(3, scale, (6, 25, 3)) for scale in (0.01, 0.1, 1.0))
    names = [f"720575940379447{digits}" for digits in (38, 39, 40)]  # no float tells them apart
    frames = [
        dict(zip(names, bodies, strict=True)) for bodies in zip(little, chair, much, strict=True)
    ]
    del frames[0][names[2]], frames[3][names[0]]
    frames[5] = {}
    path = tmp_path / "S001C002P003R002A013.skeleton"
    path.write_text(skeleton_file(frames))
    found = ntu.read(path)
    origin = much[1, ntu.ORIGIN]
    much[[0, 5]] = little[[3, 5]] = origin
    np.testing.assert_allclose(found, np.concatenate([much, little], 1) - origin, rtol=1e-5)
    alone = [{names[0]: joints} for joints in little[:2]]
    path.write_text(skeleton_file(alone))
    assert (ntu.read(path)[:, 25:] == 0).all(), "there is no second one"
    path.write_text(skeleton_file([{}, {}]))
    assert ntu.read(path) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words[:-1], "cannot reshape"),
        (lambda words: [*words, "1"], "1 words too many"),
        (lambda words: [*words[:12], "24", *words[13:]], "a body of 24 joints, not 25"),
        (lambda words: ["two", *words[1:]], "invalid literal"),
    ],
)
def test_broken_skeleton_files_are_refused(change, said, tmp_path):
    path = tmp_path / "S001C002P003R002A013.skeleton"
    words = skeleton_file([{"7": np.ones((25, 3))}]).split()
    path.write_text(" ".join(change(words)))
    with pytest.raises(UserError, match=rf"{path.name} is broken: .*{said}"):
        ntu.read(path)


def test_people_train_or_test(folder, tmp_path):
    by_subject, by_view = (ntu.load(folder, split) for split in ("subject", "view"))
    assert [len(by_subject[part]) for part in ("train", "test")] == [8, 4]
    assert [len(by_view[part]) for part in ("train", "test")] == [0, 12]
    assert {action for part in by_subject.values() for _, action in part} == {1, 7}
    (tmp_path / "first.skeleton").write_text("0")
    with pytest.raises(UserError, match="is not named as"):
        ntu.load(tmp_path, "subject")


def test_a_missing_set_is_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.tasks.data.PACKAGES", ())
    for task in ("airline", "skeleton", "vowels"):
        assert "pip install sktime" in refusal(task, "--data", tmp_path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The vowels.


@pytest.mark.parametrize("kind", ["residual", "lstm", "mingru"])
def test_padding_changes_no_answer(kind, folder):
    if kind == "mingru":
        pytest.importorskip("minGRU_pytorch")
    task = make(vowels.Vowels, folder, model=[kind])
    (learner,) = task.learners
    model = learner.model.eval()
    together = model(*task.inputs("test", torch.arange(6), None))
    values, lengths = task.inputs("test", torch.arange(6), None)
    assert lengths.tolist() == [5, 6, 7, 8, 9, 10]
    assert values.shape == (6, 10, 3)
    for index in range(6):
        alone = model(*task.inputs("test", torch.tensor([index]), None))
        torch.testing.assert_close(alone[0], together[index])


def test_each_sequence_is_read_out_at_its_own_end():
    output, lengths = torch.arange(15.0).view(3, 5, 1), torch.tensor([5, 1, 3])
    assert series.last_step(output, lengths).flatten().tolist() == [4, 5, 12]
    assert series.last_step(output).flatten().tolist() == [4, 9, 14]


def test_the_figure_is_of_the_test_series_or_of_those_held_out(folder, tmp_path):
    """A model that answers by the first number of a series, and always right."""
    for validate, part in ((False, "test"), (True, "train")):
        task = make(vowels.Vowels, folder, validate=validate)
        labels = task.labels[part]

        def model(values, lengths, labels=labels):
            right = torch.nn.functional.one_hot(labels[lengths - 5], 2)
            return torch.where(lengths[:, None] == 9, 1 - right, right) * 100.0

        count = 2 if validate else 6  # every fifth of ten: the lengths 9 and 14
        assert task.evaluate(model)["accuracy"] == pytest.approx(1 - 1 / count)
    assert set(task.chosen["train"].tolist()) == {0, 1, 2, 3, 5, 6, 7, 8}
    words = ["--batch", 4, "--epochs", 1, "--parameters", 1000, "--validate"]
    run("vowels", *SMALL, *words, "--data", folder, "--model", "gru", "--out", tmp_path / "run")
    assert report(tmp_path / "run")["series"] == {"train": 8, "validation": 2}


# The frames.


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_speaker_of_each_frame_is_told(folder, bidirectional):
    """Against a loop over utterances and their frames; padding counts nowhere."""
    options = {"model": ["irnn-small"], "bidirectional": bidirectional, "dropout": 0.0}
    task = make(speech.Speech, folder, **options)
    (learner,) = task.learners
    model, loss, wrong, frames = learner.model.eval(), 0.0, 0, 0
    for index in range(6):
        values, _ = task.inputs("test", torch.tensor([index]), None)
        logits = model.head(model.recurrent(values)[0][0])
        label = task.labels["test"][index]
        for each in logits:
            loss -= each.log_softmax(0)[label].item()
            wrong += int(each.argmax() != label)
            frames += 1
    assert frames == 5 + 6 + 7 + 8 + 9 + 10
    expected = {"frame error": wrong / frames, "loss": pytest.approx(loss / frames, rel=1e-5)}
    assert task.evaluate(model) == expected
    found = task.loss_of_step(learner, 0)
    assert found.keys() == {"loss", "frame error"}


# The passengers.


def test_the_loss_of_a_forecast_is_the_one_of_a_loop(folder):
    task = make(airline.Airline, folder, history=60, noise=0.0, batch=1, model=["gru-1"])
    (learner,) = task.learners
    numbers = [
        float(line.split(",")[1]) for line in (folder / "Airline.csv").read_text().split()[1:]
    ]
    logarithms = np.log(numbers[:60])
    changes = np.diff(logarithms)
    changes = (changes - changes.mean()) / changes.std(ddof=1)
    np.testing.assert_allclose(task.changes, changes, rtol=1e-4, atol=1e-5)
    told = learner.model(task.changes[None])[0].detach()
    errors = [
        (told[month, ahead].item() - changes[month + 1 + ahead]) ** 2
        for month in range(11, 59)
        for ahead in range(24)
        if month + 1 + ahead < 59
    ]
    assert task.loss_of_step(learner, 0)["loss"].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_forecast_knows_nothing_of_the_months_that_it_is_for(folder, tmp_path):
    def forecast(folder):
        task = make(airline.Airline, folder, history=60)
        model = task.learners[0].model
        with torch.no_grad():
            fit, ahead = task.fit_and_forecast(model)
            told = model(task.changes[None])[0].double() * task.scale + task.mean
        assert len(fit) == 58
        assert fit[-1].item() == pytest.approx((task.history[58] * told[-2, 0].exp()).item())
        assert ahead[1].item() == pytest.approx(
            (task.history[59] * told[-1, :2].sum().exp()).item()
        )
        by_hand = [(a - b) ** 2 for a, b in zip(ahead, task.passengers[60:], strict=True)]
        assert task.error(ahead) == pytest.approx(math.sqrt(sum(by_hand) / 24))
        naive = airline.seasonal_naive(task.history)
        assert naive.tolist() == 2 * task.history[48:].tolist()
        return ahead

    lines = (folder / "Airline.csv").read_text().split()
    (tmp_path / "Airline.csv").write_text("\n".join([*lines[:61], *(f"{x}0" for x in lines[61:])]))
    assert torch.equal(forecast(folder), forecast(tmp_path))


def test_an_arima_continues_a_season():
    pytest.importorskip("statsmodels")
    months = torch.arange(84)
    passengers = torch.exp(5 + 0.01 * months + 0.3 * torch.sin(months * math.pi / 6)).double()
    noise = torch.randn(84) * 0.01
    found = airline.arima(passengers[:60] * noise[:60].exp())
    assert (found / passengers[60:]).log().abs().max() < 0.1


# Frames and angles.


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_frame_of_each_part_is_read(count):
    lengths = torch.tensor([1, 7, 20, 61, 300])
    middle = skeleton.sample(lengths, count)
    expected = [[int((i + 0.5) * length / count) for i in range(count)] for length in lengths]
    assert middle.tolist() == expected
    seen = torch.stack(
        [skeleton.sample(lengths, count, torch.default_generator) for _ in range(300)]
    )
    for index, length in enumerate(lengths.tolist()):
        for part in range(count):
            first, end = part * length / count, (part + 1) * length / count
            found = set(seen[:, index, part].tolist())
            assert found <= set(range(int(first), math.ceil(end))), "of this part"
            assert len(found) > 1 or end - first <= 1, "not always the same"


def test_a_sequence_is_turned_as_a_whole():
    points = torch.randn(2, 4, 5, 3)
    quarter, none = torch.tensor([math.pi / 2, 0.0]), torch.zeros(2)
    x, y, z = points[0].unbind(-1)
    turned = skeleton.turn(points, quarter, none)
    torch.testing.assert_close(turned[0], torch.stack([z, y, -x], -1))
    torch.testing.assert_close(turned[1], points[1])
    turned = skeleton.turn(points, none, quarter)
    torch.testing.assert_close(turned[0], torch.stack([x, -z, y], -1))
    angles = torch.rand(2, 2)
    turned = skeleton.turn(points, *angles).flatten(1, 2)
    points = points.flatten(1, 2)
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(points, points))


def test_sequences_are_changed_in_training_alone(folder):
    task = make(skeleton.Skeleton, folder, frames=4)
    chosen = torch.tensor([2, 0])
    (still,) = task.inputs("train", chosen, None)
    assert still.shape == (2, 4, 150)
    for row, index in zip(still, chosen, strict=True):
        first, length = (each["train"][index].item() for each in (task.starts, task.lengths))
        places = [first + int((part + 0.5) * length / 4) for part in range(4)]
        assert torch.equal(row, task.frames["train"][places].flatten(1))
    assert torch.equal(*(task.inputs("train", chosen, None)[0] for _ in range(2)))
    changed = [
        task.inputs("train", chosen, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    ]
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])


def test_the_stand_in_is_called_one(tmp_path):
    rng = np.random.default_rng(3)
    for part in ("TRAIN", "TEST"):
        rows = [(rng.normal(index % 2, 1, (6, 30)), f"a{index % 2}") for index in range(6)]
        (tmp_path / f"BasicMotions_{part}.ts").write_text(ts_file(rows))
    words = ["--epochs", 1, "--parameters", 1000, "--model", "gru", "--data", tmp_path]
    output, _ = run("skeleton", *SMALL, *words, "--out", tmp_path / "run")
    found = report(tmp_path / "run")
    assert "BasicMotions in place of NTU RGB+D" in output
    assert found["title"] in output
    assert found["settings"]["stand_in"] is True
    full = found["settings"] | {"full": True, "layers": 6}
    assert skeleton.Skeleton.published(full, "indrnn") == {}, "nothing to compare with"
    same = skeleton.Skeleton.published(full | {"stand_in": False}, "indrnn")
    assert same == {"accuracy, test": "81.8 %"}
