"""The pages are built without a warning and without a network, the Python on each of them runs, and
the API pages have every public name."""

import html
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import fastindrnn

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = {
    page.relative_to(DOCS).as_posix(): PYTHON.findall(page.read_text(encoding="utf-8"))
    for page in sorted(DOCS.rglob("*.md"))
}


def test_there_are_pages_with_python():
    assert {"index.md", "from-lstm.md", "recipes.md", "parallel.md", "faq.md"} <= {
        page for page, blocks in BLOCKS.items() if blocks
    }


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
@pytest.mark.filterwarnings("ignore:.*isinstance:FutureWarning")  # of torch.onnx
def test_python_runs(page):
    """One block after the other, each with what those before it have made."""
    names = {"__name__": "page"}
    for code in BLOCKS[page]:
        exec(compile(code, page, "exec"), names)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages; a link or an anchor that leads nowhere is an error."""
    if sys.version_info < (3, 11):
        pytest.skip("mkdocs-material needs Python 3.11")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def api(site):
    """The API pages, one after the other."""
    return " ".join(page.read_text(encoding="utf-8") for page in sorted(site.glob("api/*.html")))


def test_every_public_name_has_its_place(site):
    text = html.unescape(re.sub(r"<[^>]*>", "", api(site)))
    missing = [
        name
        for name in fastindrnn.__all__
        if not re.search(rf"\bfastindrnn\.{name}(?![.\w])", text)
    ]
    assert not missing


@pytest.mark.parametrize("module", ["fold", "init", "interop", "memory", "onnx"])
def test_every_function_of_a_module_has_its_place(site, module):
    """Of the modules whose names are not at the top level too."""
    places = re.findall(rf'id="fastindrnn\.{module}\.(\w+)"', api(site))
    names = {
        name
        for name, value in vars(getattr(fastindrnn, module)).items()
        if not name.startswith("_")
        and callable(value)
        and value.__module__.startswith(f"fastindrnn.{module}")
    }
    assert names
    assert names <= set(places)


def test_pages_fetch_nothing(site):
    """Scripts, styles and images come with the site; a link that one follows may lead out."""
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?([^\"' >]*)", text
        )
        fetched += re.findall(r"(?:@import|url\()\s*[\"']?([^\"')]*)", text)
        outside = [address for address in fetched if re.match(r"(https?:)?//", address)]
        assert not outside, f"{page.relative_to(site)}: {outside}"


@pytest.mark.parametrize("name", ["results", "speed"])
def test_measured_plots_are_shown(site, name):
    page = (site / f"{name}.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img[^>]*src="([^"]*)"', page)
    assert shown
    assert all((site / image).is_file() for image in shown)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.name)
def test_drawings_are_whole(path):
    assert ET.parse(path).getroot().tag.endswith("svg")
