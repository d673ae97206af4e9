"""The notebooks' widgets, moved by a real browser in a real JupyterLab, where Chromium is there."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from conftest import ROOT
from playwright.sync_api import Page
from test_predict import make_model
from waiting import wait_for

from dfdc_lib.model import save_checkpoint
from dfdc_lib.store import WorkFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def course(small_sample, small_work, tmp_path_factory) -> Path:
    """A folder with notebooks 09 and 15, set to the small sample and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("course")
    work = WorkFolder(Path(shutil.copytree(small_work.root, folder / "work")))
    checkpoint = work.run("widgets") / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    save_checkpoint(checkpoint, make_model())
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    common = {"DATA": str(small_sample), "WORK": str(work.root), "INTERACTIVE": True}
    own = {
        "09_aggregation_strategies": {"RUN": "widgets", "FRAMES": 2, "VIDEOS": 2},
        "15_your_own_video": {"CHECKPOINTS": str(checkpoint), "FRAMES": 3},
    }
    for page, values in own.items():
        name, quiet = f"notebooks/{page}.ipynb", {"prepare_only": True, "progress_bar": False}
        papermill.execute_notebook(ROOT / name, folder / name, common | values, **quiet)
    return folder


@pytest.fixture(scope="module")
def lab(course):
    """The address of a JupyterLab that serves the course."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    call += ["--IdentityProvider.token=", f"--notebook-dir={course}"]
    own = {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(course / "config")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(call, env=os.environ | own, cwd=course, **quiet)

    def listens() -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens, "JupyterLab")
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(lab, browser) -> Page:
    page = browser.new_page()
    page.set_viewport_size({"width": 1200, "height": 30_000})  # cells out of sight are not drawn
    return page


def run_all(page: Page, lab: str, name: str) -> None:
    # JupyterLab goes on to another address, at times before this one has loaded.
    page.goto(f"{lab}/tree/notebooks/{name}.ipynb?reset", wait_until="commit")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()  # before, it would ask which kernel is meant
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_text("Run All Cells", exact=True).first.click()
    # Until the last cell has run, JupyterLab moves the focus, and a key press can be lost.
    all_ran = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
                         .every(prompt => /^\\[\\d+\\]:/.test(prompt.innerText.trim()))"""
    page.wait_for_function(all_ran)


def move_slider(page: Page, number: int = 0) -> None:
    """Move one of a notebook's sliders one step: the picture under it changes."""
    widget = page.locator(".widget-interact").nth(number)
    before = widget.locator("img").first.get_attribute("src")
    assert before.startswith("data:image/png")
    widget.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    changed = (
        "([area, old]) => { const img = area.querySelector('img'); return img && img.src !== old }"
    )
    page.wait_for_function(changed, arg=[widget.element_handle(), before])


def test_moving_the_threshold_of_notebook_09_changes_the_figure(page, lab):
    run_all(page, lab, "09_aggregation_strategies")
    move_slider(page)


def test_notebook_15_takes_an_upload_and_shows_the_frame_that_is_chosen(page, lab, small_sample):
    run_all(page, lab, "15_your_own_video")
    for number in range(2):  # the detector's threshold, the frame
        move_slider(page, number)
    video = next(small_sample.glob("*/*.mp4"))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="your video").click()
    chooser.value.set_files(video)
    page.get_by_text(f"{video.name}: now run the cells below").wait_for()
