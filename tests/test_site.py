"""The site opens from a folder, offline: no outside address, no console error, figures and formulas in place."""

import base64
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import load_runner

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Hosts that Chromium itself asks, whatever the page: updates, the time, its own accounts.
BROWSERS_OWN = {"update.googleapis.com", "clients2.google.com", "accounts.google.com"}
pytestmark = pytest.mark.slow


def picture() -> str:
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1])
    buffer = BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A site of docs/ and one small executed notebook."""
    run = load_runner()
    report = tmp_path_factory.mktemp("report")
    (report / "notebooks").mkdir()
    output = nbformat.v4.new_output("display_data", {"image/png": picture(), "text/plain": "figure"})
    cells = [
        nbformat.v4.new_markdown_cell("# A page?\n\nLoss is $-\\log(p)$.\n\n$$\\frac{1}{N}\\sum_i x_i$$"),
        nbformat.v4.new_code_cell("plot()", execution_count=1, outputs=[output]),
    ]
    language = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), report / "notebooks" / "00_page.ipynb")
    (report / "notebooks" / ".00_page.made-from").write_text("")
    return run.build_site(report).parent


def test_pages_ask_for_nothing_from_outside(site):
    for page in site.rglob("*.html"):
        loads = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"(https?:)?//[^\"]*\"", page.read_text()
        )
        assert not loads, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_figures_and_formulas_are_in_place(site):
    page = (site / "notebooks" / "00_page.html").read_text()
    image = re.search(r'<img[^>]*src="([^"]*_images/[^"]*)"', page).group(1)
    assert (site / "notebooks" / image).resolve().exists()
    assert "<mfrac>" in page
    assert "</math>" in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: pages were not opened in a browser")
@pytest.mark.parametrize("name", ["index.html", "notebooks/00_page.html"])
def test_a_browser_opens_the_page_without_errors_or_requests(site, tmp_path, name):
    log = tmp_path / "net.json"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [CHROMIUM, *options.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--virtual-time-budget=5000"]
    result = subprocess.run(
        [*command, "--dump-dom", (site / name).as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "<h1>" in result.stdout
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "[PST]: Changed to" not in line]
    assert not said
    asked = {urlsplit(url).netloc for url in re.findall(r'"url":"(https?://[^"]+)"', log.read_text())}
    assert not asked - BROWSERS_OWN
