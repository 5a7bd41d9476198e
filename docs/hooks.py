"""What MkDocs does beside its configuration: the measured plots and figures become part of the
site, at the path that they have in the repository, so that README.md's links hold on a page too."""

from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).parents[1] / "bench" / "results"


def on_files(files, *, config):
    for path in sorted(RESULTS.glob("*")):
        if path.suffix in (".svg", ".json"):
            place = f"bench/results/{path.name}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files
