"""The notebooks' widgets, moved by a real browser in a real JupyterLab. Skips by name where Chromium is absent."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import papermill
import pytest
import torch
from playwright.sync_api import Page, sync_playwright
from waiting import wait_for

from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
PATIENCE = 600_000  # milliseconds: only what never comes fails


@pytest.fixture(scope="module")
def course(small_sample, small_work, tmp_path_factory) -> Path:
    """A folder as the course's, with notebooks 08 and 12 set to the small sample and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("course")
    torch.manual_seed(0)
    checkpoint = small_work.run("widgets") / "last.pt"
    save_checkpoint_at(checkpoint)
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    common = {"DATA": str(small_sample), "WORK": str(small_work.root), "INTERACTIVE": True}
    given = {
        "08_aggregation_strategies": {"RUN": "widgets", "FRAMES": 2, "VIDEOS": 2},
        "12_your_own_video": {"CHECKPOINTS": str(checkpoint), "FRAMES": 3},
    }
    for name, values in given.items():
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb", common | values,
            prepare_only=True, progress_bar=False,
        )  # fmt: skip
    return folder


def save_checkpoint_at(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, DeepfakeClassifier("tiny"))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab(course):
    """The address of a JupyterLab that serves the course."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={course}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(course / "config")}
    with open(course / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=environment, cwd=course
        )
    address = f"http://127.0.0.1:{port}/lab"
    try:
        wait_for(lambda: answers(address), "JupyterLab")
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(lab):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 30_000})  # tall: cells out of sight are not drawn
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def run_all(page: Page, lab: str, name: str) -> None:
    address = f"{lab}/tree/notebooks/{name}.ipynb?reset"
    # JupyterLab goes on to another address, at times before this one has loaded.
    page.goto(address, wait_until="commit")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()  # before that, JupyterLab would ask which kernel is meant
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_text("Run All Cells", exact=True).first.click()


def move_slider(page: Page, number: int = 0) -> tuple[str, str]:
    """Move a notebook's slider one step; return the picture under it before and after."""
    widget = page.locator(".widget-interact").nth(number)
    picture = widget.locator("img")
    before = picture.first.get_attribute("src")
    widget.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([area, old]) => { const img = area.querySelector('img'); return img && img.src !== old }",
        arg=[widget.element_handle(), before],
    )
    return before, picture.first.get_attribute("src")


def test_moving_the_threshold_of_notebook_08_changes_the_figure(page, lab):
    run_all(page, lab, "08_aggregation_strategies")
    before, after = move_slider(page)
    assert before.startswith("data:image/png")
    assert before != after


def test_notebook_12_takes_an_upload_and_shows_the_frame_that_is_chosen(page, lab, small_sample):
    run_all(page, lab, "12_your_own_video")
    before, after = move_slider(page)
    assert before != after
    video = small_sample / read_metadata(small_sample).file[0]
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="your video").click()
    chooser.value.set_files(video)
    page.get_by_text(f"{video.name}: now run the cells below").wait_for()
