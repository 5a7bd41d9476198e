"""python -m bench report: what is drawn from a JSON, and what is refused."""

import itertools
import json
import re
from pathlib import Path

import pytest
from bench_command import run

from bench.arguments import UserError
from bench.speed import cases, measure, report
from bench.speed.candidates import LAYER, LINEAR, LSTM
from bench.speed.cases import DTYPES, TRAINING, Case

ROOT = Path(__file__).parent.parent


def test_the_charts_come_first_and_say_what_they_show(tmp_path):
    """Of made-up figures: each layer takes and holds its number times as much as `IndRNN`."""
    rows = []
    for T, dtype in itertools.product((64, 1024, 8192), cases.DTYPES):
        for times, name in enumerate([LAYER, LINEAR, LSTM], 1):
            results = {name: [0.0001 * T**2 * times] * 5}
            held = {name: times * 32 * T * 128 * DTYPES[dtype].itemsize}
            rows += measure.rows_of(Case((32, T, 128), dtype, TRAINING), results, held)
    path, readme = tmp_path / "a.json", tmp_path / "README.md"
    content = report.load(ROOT / "bench" / "results" / "speed-cpu.json") | {"rows": rows}
    path.write_text(json.dumps(content))
    readme.write_text(report.BEGIN + report.END)
    run("report", path, "--readme", readme)
    page = readme.read_text()
    order = "At T = 8,192", "takes 3 (float32) and 3 (bfloat16) times", "holds 3 (", "| B, T, N |"
    assert sorted(order, key=page.index) == list(order)
    assert "In bfloat16 at T = 8,192, from the lowest line up: IndRNN 1, nn.Linear 2" in page
    assert "In float32: IndRNN 1, nn.Linear 2, nn.LSTM 3." in page
    assert "<details" not in page, "nothing else to show"
    for name, labels in (("time", [LSTM, "8,192", "1,000"]), ("memory", [f"{LSTM}: 3"])):
        picture = (tmp_path / f"a-{name}.svg").read_text()
        assert f"](a-{name}.svg)" in page
        for label in labels:
            assert re.search(rf"> ?{label}</text>", picture), label
        assert not re.search(r">[^<]*(\de[+-]?\d|\^)[^<]*</text>", picture), "no exponents"


def test_one_shape_gives_a_table_and_no_line(tmp_path):
    path = tmp_path / "a.json"
    sizes = ["--sizes", "32x2x128", "--dtypes", "float32", "--rounds", "5"]
    run("speed", "--device", "cpu", *sizes, "--out", path)
    page, _ = run("report", path)
    assert {svg.name for svg in tmp_path.glob("*.svg")} == {"a-memory.svg"}
    assert "| 32, 2, 128 |" in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.000123456, "0.000123"),
        (0.1, "0.1"),
        (9.996, "10"),
        (12.34, "12.3"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_have_no_exponents(value, shown):
    assert report.number(value) == shown


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"task": "adding"}', "is not of python -m bench speed"),
        ('{"benchmark": "speed"}', "of another version of python -m bench speed"),
    ],
)
def test_a_wrong_json_is_refused(content, word, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=word):
        report.load(path)


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.END} and then {report.BEGIN}")
    with pytest.raises(UserError, match="has no place for the tables"):
        report.insert(readme, {})


def test_readme_shows_the_committed_figures():
    """`python -m bench report` has nothing to change."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    contents = {path: report.load(path) for path in report.committed()}
    assert page == report.insert(ROOT / "README.md", contents)
