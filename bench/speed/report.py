"""Draw measured speed: charts and tables of the JSON files that `python -m bench speed` writes.

Without a JSON: those of bench/results, into README.md. With one: on the terminal. The charts lie
beside the JSON. Nothing is measured.
"""

import json
import statistics
from pathlib import Path

from bench.arguments import UserError
from bench.environment import replace_between, write
from bench.speed import cases
from bench.speed.cases import DTYPES, TRAINING
from bench.speed.rows import FORMAT, by_case, number, ratio, word

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- bench speed: begin -->", "<!-- bench speed: end -->"


def add_arguments(parser):
    parser.add_argument("results", type=Path, nargs="*", metavar="JSON", help="what to draw")


def run(args):
    from bench.speed import charts  # here, because it needs matplotlib

    contents = {path: load(path) for path in args.results or committed()}
    for path, content in contents.items():
        for chart in charts.draw(path, content):
            print(f"written: {chart}")
    if args.results:
        print("", *(section(content, path) for path, content in contents.items()), sep="\n")
    else:
        write(README, insert(README.read_text(encoding="utf-8"), contents))
        print(f"written: {README}")
    return 0


def committed():
    return sorted(RESULTS.glob("speed-*.json"))


def load(path):
    """The content of a JSON of `python -m bench speed`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or content.get("benchmark") != "speed":
        raise UserError(f"{path} is not of python -m bench speed")
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is of another version of python -m bench speed: measure again")
    return content


def insert(page, contents):
    """README.md with these results between its marks."""
    parts = [section(content, path.relative_to(ROOT)) for path, content in contents.items()]
    return replace_between(page, BEGIN, END, "\n\n".join(parts))


def section(content, path):
    """The results as Markdown. path: of the JSON, from the page's folder."""
    from bench.speed.charts import CHARTS

    environment, found = content["environment"], by_case(content["rows"])
    count = min((len(row["ms"]) for row in content["rows"] if "ms" in row), default=0)
    parts = [
        f"**{environment['device_name']}**, torch {environment['versions']['torch']} "
        f"({environment['date'][:10]}, [figures]({path.as_posix()})): medians of {count} rounds or "
        "more."
    ]
    for name, (of, describe, _) in CHARTS.items():
        if series := of(found):
            sentence, alt = describe(series)
            chart = path.with_name(f"{path.stem}-{name}.svg")
            parts += [sentence, f"![{alt}]({chart.as_posix()})"]
    whats = dict.fromkeys(case.what for case in found if case.sizes not in cases.MORE_STEPS)
    tables = {what: table(found, what) for what in whats}
    parts += [tables.pop(what) for what in (TRAINING,) if what in tables]
    if folded := "\n\n".join([*tables.values(), *remarks(content)]):
        summary = ", ".join(tables) or "More"
        parts.append(
            f'<details markdown="1"><summary>{summary}</summary>\n\n{folded}\n\n</details>'
        )
    return "\n\n".join(parts)


def table(found, what):
    """A line for each shape. The first candidate in milliseconds, of the others how many times as
    long they take; in both dtypes, where both were measured."""
    shown = {}
    for case, rows in found.items():
        if case.what == what and case.sizes not in cases.MORE_STEPS:
            shown.setdefault(case.sizes, {})[case.dtype] = rows
    dtypes = [dtype for dtype in DTYPES if any(dtype in each for each in shown.values())]
    names = dict.fromkeys(n for each in shown.values() for rows in each.values() for n in rows)
    first, *others = names
    lines = [["B, T, N", f"{first}, ms", *others], ["---", *["---:"] * len(names)]]
    for sizes, each in shown.items():
        cells = [" / ".join(cell(each.get(d, {}), name, first) for d in dtypes) for name in names]
        lines.append([", ".join(map(str, sizes)), *cells])
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"{what.capitalize()}, {' / '.join(dtypes)}; others: times as long as `{first}`"
    return f"{title}:\n\n{drawn}"


def cell(rows, name, first):
    row = rows.get(name, {})
    if name == first and "ms" in row:
        return number(statistics.median(row["ms"]))
    times = ratio(rows, name, first)
    return number(times) if times else "error" if "error" in row or "wrong" in row else "-"


def remarks(content):
    if any("skipped" in row for row in content["rows"]):
        yield f"`-`: not called, as a call takes more than {content['limit']:g} s, or much memory."
    words = {}
    for row in content["rows"]:
        if "error" in row or "wrong" in row:
            words.setdefault((row["name"], row["dtype"], word(row)), []).append(row["what"])
    for (name, dtype, said), whats in words.items():
        yield f"`{name}`, {dtype}, {', '.join(dict.fromkeys(whats))}: {said}"
    if not content["complete"]:
        yield "The run was stopped before its end."
