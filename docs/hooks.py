"""What MkDocs does beside its configuration, so that nothing is written twice.

A line of a page that is nothing but a link to a section of README.md becomes that section. The
measured plots and figures become part of the site, at the path that they have in the repository:
the section's links lead to them there too.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
INCLUDED = re.compile(r"^\[[^\]]*\]\(\.\./README\.md#([\w-]+)\)$", re.MULTILINE)
SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def on_files(files, *, config):
    for path in sorted((ROOT / "bench" / "results").glob("*")):
        if path.suffix in (".svg", ".png", ".json"):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, *, page, config, files):
    markdown = INCLUDED.sub(lambda link: section(link[1]), markdown)
    return markdown.replace("](../bench/", "](bench/")


def section(anchor):
    """The text below a heading of README.md, for a page beside docs/index.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for heading, text in SECTION.findall(readme):
        if heading.lower().replace(" ", "-") == anchor:
            return text.strip().replace("](docs/", "](")
    raise PluginError(f"README.md has no section #{anchor}")
