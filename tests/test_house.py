"""The promises of the repository itself: pins, layout, no addresses, README's commands."""

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dfdc_lib.aggregate import join_videos
from dfdc_lib.metrics import log_loss

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
README = (ROOT / "README.md").read_text()


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1].isalnum()]
    return {line.split("==")[0].lower(): line.split("==")[1] for line in lines}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    missing = {re.split(r"[=<>]", d)[0] for d in wanted} - set(pinned())
    assert not missing


def test_conda_users_get_the_same_pins():
    """environment.yml brings Python and hands every version to requirements.lock: there is one place to look."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert [d.split("=")[0] for d in conda] == ["python", "pip"]
    assert pip == ["--requirement requirements.lock", "--editable ."]


def test_one_opencv_only():
    assert "opencv-python-headless" in pinned()
    assert "opencv-python" not in pinned()


def test_no_file_names_a_registry_or_a_machines_path():
    hosts = ("pypi.", "pythonhosted.", "registry.npmjs.", "download.pytorch.")
    registries = (*(host + "org" for host in hosts), "/roo" + "t/", "/wor" + "k/main")
    for name in TRACKED:
        if Path(name).suffix not in {".png", ".npz"} and (ROOT / name).is_file():
            text = (ROOT / name).read_text()
            assert not [word for word in registries if word in text], name


def test_no_data_or_report_is_committed():
    assert len(TRACKED) > 30, "git listed no files: is this a checkout?"
    assert not [f for f in TRACKED if f.startswith(("reports/", "data/sample", "data/work"))]
    assert not [f for f in TRACKED if Path(f).suffix in {".mp4", ".pt", ".parquet"}]


def test_the_top_level_is_as_promised():
    for name in (
        "notebooks",
        "dfdc_lib",
        "data",
        "environment.yml",
        "run_all.sh",
        "README.md",
        "LICENSE",
        "CITATION.cff",
    ):
        assert (ROOT / name).exists()


def test_readme_names_the_two_commands_and_they_exist():
    assert "./run_all.sh  " in README
    assert "./run_all.sh --test" in README
    assert "./run_all.sh --test" in (ROOT / ".ci" / "run").read_text()
    printed = subprocess.run([ROOT / "run_all.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for option in (
        "--profile",
        "--data",
        "--work",
        "--only",
        "-p NAME VALUE",
        "--sweep NAME A,B",
        "--fresh",
        "--no-site",
        "--lab",
        "--test",
    ):
        assert option in printed


def test_readme_gives_the_numbers_of_the_committed_tables():
    faces = pd.read_csv(ROOT / "experiments" / "frame_scores.csv", comment="#", dtype={"video_id": str})
    label = faces.groupby("video_id").label.first()
    models = [name for name in faces if re.match(r"(seed|longer)_\d", name)]

    def mean_loss(strategy):
        joined = [join_videos(strategy, faces[m].to_numpy(), faces.video_id.to_numpy()) for m in models]
        return statistics.mean(log_loss(label[video_ids], p) for video_ids, p in joined)

    losses = f"{mean_loss('mean'):.3f} → {mean_loss('confident'):.3f}"
    assert f"mean of {len(models)} small networks: {losses}" in README
    seeds = pd.read_csv(ROOT / "experiments" / "seeds.csv").query("arm == 'seed'")
    one = statistics.mean(log_loss(rows.label, rows.p_confident) for _, rows in seeds.groupby("seed"))
    mean = seeds.groupby("video_id")[["label", "p_confident"]].mean()
    assert f"eight small networks: {one:.2f} → {log_loss(mean.label, mean.p_confident):.2f}" in README


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command):
    result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(small_sample, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "dfdc_lib", source / "dfdc_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    shutil.rmtree(source)
    where = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    run = [sys.executable, "-m", "dfdc_lib.cli", "preprocess", str(small_sample), "--work", "work", "--originals", "1"]
    subprocess.run(run, cwd=tmp_path, env=where, check=True, capture_output=True)
    assert (tmp_path / "work" / "folds.csv").exists()


def test_functions_are_short():
    """Without docstring: half of them have at most ten lines, and none over 45, but for the list of all options."""
    lengths = {}
    for path in sorted((ROOT / "dfdc_lib").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                said = node.body[0] if ast.get_docstring(node) else None
                n_said = said.end_lineno - said.lineno + 1 if said else 0
                lengths[f"{path.stem}.{node.name} line {node.lineno}"] = node.end_lineno - node.lineno + 1 - n_said
    assert statistics.median(lengths.values()) <= 10
    assert {name for name, n in lengths.items() if n > 45 and not name.startswith("cli.build_parser ")} == set()
