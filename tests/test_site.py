"""The site opens from a folder, offline: links, figures and formulas are in place."""

import base64
import os
import re
import runpy
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, load_runner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from test_layers import MODULES, ORDER

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
pytestmark = pytest.mark.slow


def executed(content: dict, alt: str = "", **metadata) -> nbformat.NotebookNode:
    """A cell that has shown something, by media type; alt: what its code gave as a text for it."""
    about = {name: {"alt": alt} for name in content if alt}
    output = new_output("display_data", content | {"text/plain": "shown"}, metadata=about)
    return new_code_cell("plot()", execution_count=1, outputs=[output], metadata=metadata)


PNG = cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1]
PICTURE = {"image/png": base64.b64encode(PNG).decode()}


def small_notebook() -> nbformat.NotebookNode:
    """Formulas, figures between prose, a table that is wider than any phone."""
    cell_alt = {"image": {"alt": "a line, drawn by a cell that says so"}}
    html = f"<table><tr>{'<td>a wide cell</td>' * 30}</tr></table>"
    cells = [
        new_markdown_cell("# A page?\n\nLoss is $-\\log(p)$. Notebook 03 cuts."),
        new_markdown_cell("$$\\frac{1}{N}\\sum_i x_i$$\n\nThen *one* line:"),
        executed(PICTURE, mystnb=cell_alt),
        new_markdown_cell("*Synthetic.* It rises. What follows?"),
        executed(PICTURE, "a line that rises from 0 to 1"),
        new_markdown_cell("## Numbers"),
        executed({"text/html": html}),
        executed(
            {"text/html": pd.DataFrame({"said": ["yes", "notebook 03"], "p": [0.5, -1]}).to_html()}
        ),
        new_markdown_cell("| of | AUC |\n|---|---|\n| B7 | 0.9 (0.8 to 1.0) |"),
    ]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": language})


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of every notebook as if it had drawn its figures, and of a small one, also swept."""
    report = tmp_path_factory.mktemp("report")
    (report / "notebooks").mkdir()
    copies = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    for cell in (cell for notebook in copies.values() for cell in notebook.cells):
        if "image" in cell.metadata.get("mystnb", {}):
            cell.outputs = executed(PICTURE).outputs
    copies |= {"99_page": small_notebook(), "99_page_STEPS_3": small_notebook()}
    for name, notebook in copies.items():
        nbformat.write(notebook, report / "notebooks" / f"{name}.ipynb")
        (report / "notebooks" / f".{name}.made-from").write_text("")
    return load_runner().build_site(report).parent


class Page(HTMLParser):
    """What a page holds: ids that one can jump to, links, what it loads, pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.text = path.read_text()
        self.ids, self.links, self.loads, self.pictures = set(), [], [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        links = [given[name] for name in ("href", "src") if given.get(name)]
        self.ids.add(given.get("id"))
        self.links += links
        self.loads += links if tag != "a" else []
        self.pictures += [given] if tag == "img" else []


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    assert len(found) > len(NOTEBOOKS) + len(MODULES)
    return {path: Page(path) for path in found}


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_outside(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            scheme, host, name, _, place = urlsplit(link)
            target = (path.parent / unquote(name)).resolve() if name else path
            ids = pages[target].ids if target in pages and target.stem != "search" else {place}
            leads = scheme or (target.exists() and (not place or unquote(place) in ids))
            if not leads or (host and link in page.loads):
                broken.append((path.name, link))
    assert not broken


def test_every_picture_says_what_it_shows(pages):
    said = [given.get("alt") or "" for page in pages.values() for given in page.pictures]
    assert len(said) > 60
    assert not [alt for alt in said if len(alt) < 20 or re.search(r"\.(png|jpe?g|svg)$", alt)]


def test_figures_and_formulas_are_in_place(site, pages):
    path = site / "notebooks" / "99_page.html"
    said = [given["alt"] for given in pages[path].pictures]
    assert said == ["a line, drawn by a cell that says so", "a line that rises from 0 to 1"]
    assert "<mfrac>" in pages[path].text


def test_numbers_stand_to_the_right_and_figures_have_two_pixels_for_one(site, pages):
    page = pages[site / "notebooks" / "99_page.html"]
    assert '<td class="number">0.5</td>' in page.text
    assert '<th class="number">p</th>' in page.text
    assert re.search(r'<td class="number"><p>0.9 \(0.8 to 1.0\)', page.text)
    assert "<td>yes</td>" in page.text
    widths = [given.get("style", "") for given in page.pictures if "_images" in given["src"]]
    assert all("width: 4px" in width for width in widths), widths  # of nine


def test_notebooks_are_numbered_and_lead_to_each_other(site, pages):
    for path, next_path in pairwise(NOTEBOOKS):
        page = pages[site / "notebooks" / f"{path.stem}.html"].text
        assert f"<h1>{path.name[:2]} · " in page
        assert re.search(rf'class="right-next"\s+href="{next_path.stem}.html"', page)
    index = pages[site / "index.html"].text
    assert index.count("00 · From video to verdict") >= 3  # sidebar, list, next page
    assert "99 · A page? (STEPS 3)" in index
    linked = 'href="03_cropping.html">Notebook 03</a> cuts'
    assert linked in pages[site / "notebooks" / "99_page.html"].text


def test_modules_are_listed_in_reading_order_and_experiments_on_their_page():
    text = (ROOT / "docs" / "api.md").read_text()
    listed = " ".join(re.findall(r"```\{modules\}\n(.*?)\n```", text, re.DOTALL)).split()
    assert listed[: len(ORDER)] == ORDER
    assert sorted(listed) == MODULES
    shown = re.findall(r"\{experiment\} (\w+)", (ROOT / "docs" / "experiments.md").read_text())
    scripts = (ROOT / "experiments").glob("*.py")
    assert set(shown) == {path.stem for path in scripts if "def main" in path.read_text()}


def test_one_setting_names_the_repository(monkeypatch):
    monkeypatch.setenv("COURSE_REPOSITORY", "https://example.org/course")
    conf = runpy.run_path(ROOT / "docs" / "conf.py")
    source = ["If the first line says ADDRESS, ask\ngit clone ADDRESS course"]
    conf["name_repository"](None, "index", source)
    assert source == ["git clone https://example.org/course course"]
    assert conf["html_theme_options"]["repository_url"] == "https://example.org/course"


def test_a_site_without_an_address_hands_on_its_code(site, pages, tmp_path):
    link = next(link for link in pages[site / "index.html"].links if link.endswith(".tar.gz"))
    shutil.unpack_archive(site / link, tmp_path, filter="data")
    assert os.access(tmp_path / "course" / "run_all.sh", os.X_OK)
    assert "tar xzf course.tar.gz" in pages[site / "index.html"].text
    assert "ADDRESS" not in pages[site / "index.html"].text + pages[site / "faq.html"].text


def test_the_reference_shows_signatures_docstrings_and_comments(site, pages):
    page = pages[site / "api" / "geometry.html"].text
    assert 'id="dfdc_lib.geometry.add_margin"' in page
    assert "on each side, rounded and clipped to the frame" in page
    assert "spread evenly over the video" in pages[site / "api" / "config.html"].text


def test_every_page_fits_a_phone_and_loads_all_it_needs(site, pages, browser):
    """No error, nothing missing, nothing from outside, nothing wider than 360 pixels; at a desk, no
    code and no table of a page's own that one must scroll sideways. In the dark, one can search."""
    sideways = "[...document.querySelectorAll('pre, table.table')]"
    sideways += ".filter(wide => wide.scrollWidth > wide.clientWidth + 1).length"
    wrong, blank = [], "[...document.images].filter(i => i.complete && !i.naturalWidth)"

    def note_message(message):
        if message.type in ("error", "warning"):
            wrong.append((tab.url, message.text))

    browser.set_offline(True)  # what is asked from outside fails
    tab = browser.new_page()
    tab.on("console", note_message)
    tab.on("pageerror", lambda error: wrong.append((tab.url, str(error))))
    tab.on("requestfailed", lambda request: wrong.append((tab.url, f"missing: {request.url}")))
    for path in pages:
        tab.set_viewport_size({"width": 1280, "height": 740})
        tab.goto(path.as_uri())
        wrong += [(path.name, "code or a table is too wide")] if tab.evaluate(sideways) else []
        tab.set_viewport_size({"width": 360, "height": 740})
        width = tab.evaluate("document.documentElement.scrollWidth")
        sources = tab.evaluate(f"{blank}.map(i => i.src)")
        wrong += [(path.name, f"{width} pixels wide")] if width > 360 else []
        wrong += [(path.name, source) for source in sources]
    tab.emulate_media(color_scheme="dark")
    tab.goto((site / "search.html").as_uri() + "?q=margin")
    found = tab.locator("#search-results li a", has_text="Does a big margin help?")
    found.first.wait_for()
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper)[:3])) < 60
    assert not wrong
