"""Write what the tasks have measured into docs/results.md and README.md, from bench/results.

A folder of a run that is named is first taken into bench/results, under the folder's name: its
report and its plots. Runs that differ by the seed alone are one row, their mean; where more epochs
may be added to a run, they may also differ by the number of epochs. Nothing is trained.
"""

import importlib
import json
import shutil
import statistics
from pathlib import Path

from bench.arguments import UserError
from bench.environment import load_in_words, new_figure, replace_between, write, write_figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
# Files of runs that are on the page alone: they say why a figure is missed, or end long before the
# problem is learned.
ASIDE = "ablation-", "short-"
MARKS = "<!-- bench results: begin -->", "<!-- bench results: end -->"
NONE = "-"  # in place of a figure that no run has


def add_arguments(parser):
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders to take over")


def run(args):
    for folder in args.runs:
        take(folder)
    found = experiments()
    for name, (_, draw) in overviews(found).items():
        if figure := new_figure(12, 3.5):
            draw(figure)
            write_figure(RESULTS / f"{name}.png", figure, dpi=120)
            print(f"written: {RESULTS / name}.png")
    for path, text in written(found).items():
        write(path, text)
        print(f"written: {path}")
    return 0


def overviews(found):
    """{TASK-NAME: (what one sees, function that draws on a figure)}, of a task's runs together."""
    by_task = {}
    for task, reports in found:
        by_task.setdefault(task, []).extend(reports.values())
    return {
        f"{task.__module__.rpartition('.')[2]}-{name}": plot
        for task, reports in by_task.items()
        for name, plot in task.overview(reports).items()
    }


def written(found):
    """{path: its text with the results in it}."""
    texts = {ROOT / "docs" / "results.md": page(found), ROOT / "README.md": summary(found)}
    return {
        path: replace_between(path.read_text(encoding="utf-8"), *MARKS, text)
        for path, text in texts.items()
    }


def take(folder):
    """Copies a run's report and plots to bench/results/NAME.json and NAME-PLOT.png."""
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} holds no report.json: is it the folder of a run?")
    name = folder.resolve().name
    shutil.copy(folder / "report.json", RESULTS / f"{name}.json")
    for plot in sorted(folder.glob("*.png")):
        shutil.copy(plot, RESULTS / f"{name}-{plot.name}")


def experiments():
    """[(task, {name of a file: its report})]: of each experiment the runs that are one row."""
    grouped = {}
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "task" in report:
            ignored = {"seed", "hashes", "threads", "log_every"}
            if "epochs" in task_of(report["task"]).MAY_CHANGE:
                ignored |= {"epochs", "steps"}  # the longer run was the shorter one at first
            settings = {key: v for key, v in report["settings"].items() if key not in ignored}
            key = report["task"], json.dumps(settings, sort_keys=True)
            grouped.setdefault(key, {})[path.stem] = report
    return [(task_of(name), reports) for (name, _), reports in sorted(grouped.items())]


def task_of(name):
    """The class of a task."""
    return importlib.import_module(f"bench.tasks.{name}").run.__self__


def rows(task, reports):
    """[(network, parameters, seconds of training, {figure: (here, published)})]."""
    (settings, *_), found = [report["settings"] for report in reports.values()], []
    models = [report["models"] for report in reports.values()]
    for kind, name in zip(settings["model"], models[0], strict=True):
        results = [each[name] for each in models]
        measured = [task.measured(settings, result) for result in results]
        published = task.published(settings, kind)
        figures = {
            figure: (mean([each.get(figure) for each in measured], task), published.get(figure, ""))
            for figure in dict.fromkeys(name for each in measured for name in each)
        }
        seconds = statistics.fmean(result["seconds"] for result in results)
        found.append((name, results[0]["parameters"], seconds, figures))
    return found


def mean(values, task):
    """The mean over runs, with its range where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    text = task.form.format(statistics.fmean(known))
    if len(values) > 1:
        seeds = len(known) if len(known) == len(values) else f"{len(known)} of {len(values)}"
        low, high = task.form.format(min(known)), task.form.format(max(known))
        spread = f", {low} to {high}" if low != high else ""
        text += f" ({seeds} seeds{spread})"
    return text


def page(found):
    """Plots of several experiments; then a section for each title, and in it for each experiment
    the machine, a table and plots."""
    plots = overviews(found).items()
    parts = [f"![{seen}](../bench/results/{name}.png)" for name, (seen, _) in plots]
    for task, reports in sorted(found, key=title_of):
        first = next(iter(reports.values()))
        files = ", ".join(f"[{name}](../bench/results/{name}.json)" for name in reports)
        title = first["title"]
        machine, date = first["environment"]["device_name"], first["environment"]["date"][:10]
        table = rows(task, reports)
        measured = [name for *_, each in table for name, (here, _) in each.items() if here != NONE]
        figures = list(dict.fromkeys(measured))
        lines = [
            f"| network | parameters | training | {' | '.join(figures)} |",
            f"|---|---:|---:|{'---:|' * len(figures)}",
        ]
        for name, parameters, seconds, each in table:
            cells = [cell(*each.get(figure, ("", ""))) for figure in figures]
            time = f"{seconds / 60:.1f} min"
            lines.append(f"| {name} | {parameters:,} | {time} | {' | '.join(cells)} |")
        plots = [
            f"![{title}: {plot.stem.removeprefix(name + '-')}](../bench/results/{plot.name})"
            for name in list(reports)[:1]
            for plot in sorted(RESULTS.glob(f"{name}-*.png"))
        ]
        busy = load_in_words(first["environment"])
        about = f"Data: {task.data_label}. {machine}, {busy}, {date}; {files}."
        heading = f"### {title}"
        parts += [*([] if heading in parts else [heading]), about, "\n".join(lines), *plots]
    return "\n\n".join(parts)


def title_of(experiment):
    _, reports = experiment
    return next(iter(reports.values()))["title"].lower()


def cell(here, published):
    return f"{here} (published: {published})" if published and here != NONE else here


def summary(found):
    """One row for each experiment: the best network of this package, and those beside it."""
    lines = ["| task | network | parameters | figure | here | published | others here |"]
    lines.append("|---|---|---:|---|---:|---:|---|")
    for task, reports in sorted(found, key=title_of):
        if any(name.startswith(ASIDE) for name in reports):
            continue
        first = next(iter(reports.values()))
        ours, *others = rows(task, reports)
        name, parameters, _, figures = ours
        # The last figure that was measured and published; else the last that was measured.
        known = [name for name, (here, _) in figures.items() if here != NONE]
        figure = ([name for name in known if figures[name][1]] or known)[-1]
        here, published = figures[figure]
        beside = [
            f"{other}: {reached(first, other, each[figure][0])}" for other, _, _, each in others
        ]
        cells = first["title"], name, f"{parameters:,}", figure, here, published, ", ".join(beside)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reached(report, name, here):
    """A figure; where there is none, after how many steps it was not reached."""
    return here if here != NONE else f"not in {report['models'][name]['steps']:,} steps"
