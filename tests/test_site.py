"""The site opens from a folder, offline: no outside address, no console error, links, figures and formulas in place."""

import base64
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import load_runner
from playwright.sync_api import sync_playwright
from test_layers import ROWS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: pages were not opened")
# Hosts that Chromium itself asks, whatever the page: updates, the time, its own accounts.
BROWSERS_OWN = {"update.googleapis.com", "clients2.google.com", "accounts.google.com"}
pytestmark = pytest.mark.slow


@cache
def picture(alt: str = "") -> nbformat.NotebookNode:
    """A small figure, as an executed cell holds it; with `alt`, what code gave as its text."""
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1])
    buffer = BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    content = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "figure"}
    return nbformat.v4.new_output("display_data", content, metadata={"image/png": {"alt": alt}} if alt else {})


def small_notebook() -> nbformat.NotebookNode:
    """Formulas, figures between prose, a table that is wider than any phone."""
    cell_alt = {"mystnb": {"image": {"alt": "a line, drawn by a cell that says so"}}}
    prose, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    table = {"text/html": f"<table><tr>{'<td>a wide cell</td>' * 30}</tr></table>", "text/plain": "table"}
    return nbformat.v4.new_notebook(
        cells=[
            prose("# A page?\n\nLoss is $-\\log(p)$. Notebook 03 cuts.\n\n$$\\frac{1}{N}\\sum_i x_i$$"),
            prose("Nothing to see. Then *one* line:"),
            code("plot()", execution_count=1, outputs=[picture()], metadata=cell_alt),
            prose("*Synthetic.* It rises. What follows?"),
            code("plot()", execution_count=2, outputs=[picture("a line that rises from 0 to 1")]),
            prose("## Numbers"),
            code("table", execution_count=3, outputs=[nbformat.v4.new_output("display_data", table)]),
        ],
        metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of docs/, of every notebook as if it had drawn its figures, and of a small notebook, also swept.

    (A figure without an alternative text ends the build: of the executed notebooks, the demo shows that none is.)
    """
    run = load_runner()
    report = tmp_path_factory.mktemp("report")
    (report / "notebooks").mkdir()
    copies = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    copies |= {"99_page": small_notebook(), "99_page_STEPS_3": small_notebook()}
    for name, notebook in copies.items():
        for cell in notebook.cells:
            if cell.cell_type == "code" and name[:2] != "99" and "image" in cell.metadata.get("mystnb", {}):
                cell.outputs = [picture()]
        nbformat.write(notebook, report / "notebooks" / f"{name}.ipynb")
        (report / "notebooks" / f".{name}.made-from").write_text("")
    return run.build_site(report).parent


class Page(HTMLParser):
    """What a page holds: ids that one can jump to, links, pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.pictures = path, set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "img":
            self.pictures.append(given)
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    assert len(found) > len(NOTEBOOKS) + sum(map(len, ROWS))
    return {path: Page(path) for path in found}


def test_every_link_leads_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_gone = not target.exists() or (parts.fragment and target in pages and not has_id(pages[target], parts))
            if not parts.scheme and is_gone:
                broken.append((path.name, link))
    assert not broken


def has_id(page: Page, parts) -> bool:
    return page.path.name == "search.html" or unquote(parts.fragment) in page.ids


def test_every_picture_says_what_it_shows(pages):
    mute = [
        (path.name, given)
        for path, page in pages.items()
        for given in page.pictures
        if len(given.get("alt") or "") < 20 or re.search(r"\.(png|jpe?g|svg)$", given["alt"])
    ]
    assert not mute
    assert sum(len(page.pictures) for page in pages.values()) > 60


def test_a_figures_text_is_its_cells_or_its_codes(pages):
    (page,) = (page for path, page in pages.items() if path.name == "99_page.html")
    first, second = (given["alt"] for given in page.pictures)
    assert first == "a line, drawn by a cell that says so"
    assert second == "a line that rises from 0 to 1"


def test_notebooks_are_numbered_and_lead_to_each_other(site):
    for path, next_path in pairwise(NOTEBOOKS):
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        assert re.search(rf"<h1>{path.name[:2]} · ", page)
        assert re.search(rf'class="right-next"\s+href="{next_path.stem}.html"', page)
    index = (site / "index.html").read_text()
    assert index.count("00 · From video to verdict") >= 3, "in the sidebar, in the list, as the next page"
    assert "99 · A page? (STEPS 3)" in index
    assert 'href="03_cropping.html">Notebook 03</a> cuts' in (site / "notebooks" / "99_page.html").read_text()


def test_the_library_page_lists_every_module_in_its_row():
    rows = re.findall(r"```\{modules\}\n(.*?)\n```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert [sorted(row.split()) for row in rows] == [sorted(row) for row in ROWS], "docs/api.md: mend its lists"


def test_the_reference_shows_signatures_docstrings_and_comments(site):
    page = (site / "api" / "geometry.html").read_text()
    assert 'id="dfdc_lib.geometry.add_margin"' in page
    assert "on each side, rounded and clipped to the frame" in page
    assert "spread evenly over the video" in (site / "api" / "config.html").read_text(), "a comment beside a setting"


def test_every_experiment_is_on_its_page():
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py") if "def main" in path.read_text()}
    assert set(re.findall(r"\{experiment\} (\w+)", (ROOT / "docs" / "experiments.md").read_text())) == scripts


def test_pages_ask_for_nothing_from_outside(site):
    for page in site.rglob("*.html"):
        loads = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"(https?:)?//[^\"]*\"", page.read_text()
        )
        assert not loads, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_figures_and_formulas_are_in_place(site):
    page = (site / "notebooks" / "99_page.html").read_text()
    image = re.search(r'<img[^>]*src="([^"]*_images/[^"]*)"', page).group(1)
    assert (site / "notebooks" / image).resolve().exists()
    assert "<mfrac>" in page
    assert "</math>" in page


@needs_chromium
@pytest.mark.parametrize("name", ["index.html", "notebooks/99_page.html"])
def test_a_browser_opens_the_page_without_errors_or_requests(site, tmp_path, name):
    log = tmp_path / "net.json"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [CHROMIUM, *options.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--virtual-time-budget=5000"]
    result = subprocess.run(
        [*command, "--dump-dom", (site / name).as_uri()], capture_output=True, text=True, timeout=600
    )
    assert "<h1>" in result.stdout
    # "[PST]:" begins the theme's own notes
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "[PST]:" not in line]
    assert not said
    asked = {urlsplit(url).netloc for url in re.findall(r'"url":"(https?://[^"]+)"', log.read_text())}
    assert not asked - BROWSERS_OWN


@needs_chromium
def test_every_page_fits_a_phone_and_loads_all_it_needs(pages):
    """In one browser: no error on the console, nothing missing, nothing from outside, no page wider than 360 pixels."""
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 360, "height": 740})
        tab.set_default_timeout(600_000)  # milliseconds: only what never comes fails
        tab.on("console", lambda m: wrong.append((tab.url, m.text)) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append((tab.url, str(error))))
        tab.on("requestfailed", lambda request: wrong.append((tab.url, f"missing: {request.url}")))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append((tab.url, r.url)))
        for path in pages:
            tab.goto(path.as_uri())
            width = tab.evaluate("document.documentElement.scrollWidth")
            blank = tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            wrong += [(path.name, f"{width} pixels wide")] * (width > 360) + [(path.name, src) for src in blank]
        browser.close()
    assert not wrong
