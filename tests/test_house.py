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
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dfdc_lib.metrics import log_loss
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True).stdout.decode().split()
README = (ROOT / "README.md").read_text()


def test_every_dependency_is_pinned_also_for_conda_users():
    """environment.yml hands every version to requirements.lock: there is one place to look."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if line[:1].isalnum()}
    assert {re.split(r"[=<>]", name)[0] for name in wanted} <= pinned
    assert "opencv-python" not in pinned  # of two OpenCVs, the one that is read is luck
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [name.split("=")[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["--requirement requirements.lock", "--editable ."]}


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


def test_readme_names_the_two_commands_and_they_exist():
    assert "./run_all.sh  " in README
    assert "./run_all.sh --test" in README
    assert "./run_all.sh --test" in (ROOT / ".ci" / "run").read_text()
    printed = subprocess.check_output([ROOT / "run_all.sh", "--help"], text=True)
    options = "--profile --data --work --only -p --sweep --fresh --no-site --lab --test"
    assert [option for option in options.split() if f"{option} " not in printed] == []


def test_readme_gives_the_numbers_of_the_committed_tables():
    videos = pd.read_csv(ROOT / "experiments" / "ensembles.csv", comment="#")
    seeds = videos[videos.arm == "seed"]

    def mean_loss(column):
        return statistics.mean(log_loss(m.label, m[column]) for _, m in seeds.groupby("number"))

    one = mean_loss("p_confident")
    assert f"mean of 15 Lite0: {mean_loss('p_mean'):.3f} → {one:.3f}" in README
    together = seeds.groupby("video_id")[["label", "p_confident"]].mean()
    averaged = log_loss(together.label, together.p_confident)
    assert f"15 Lite0: {one:.3f} → {averaged:.3f}" in README


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy dfdc_lib"])
def test_linters_pass(command):
    call = [sys.executable, "-m", *command.split()]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(small_sample, tmp_path):
    source = tmp_path / "source"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dfdc_lib", source / "dfdc_lib", ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def call(*arguments, cwd=tmp_path):
        where = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        subprocess.run(command, cwd=cwd, env=where, check=True, capture_output=True)

    call("-c", "from setuptools.build_meta import build_wheel; build_wheel('..')", cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    shutil.rmtree(source)
    dfdc = ("-m", "dfdc_lib.ops.cli")
    call(*dfdc, "preprocess", small_sample, "--work", "work", "--originals", 1)
    assert (tmp_path / "work" / "folds.csv").exists()
    save_checkpoint(tmp_path / "m.pt", DeepfakeClassifier("tiny"))
    video = next(small_sample.glob("*/*.mp4"))
    call(*dfdc, "predict", video, "--checkpoint", "m.pt", "--report", "pages")
    assert list((tmp_path / "pages").glob("*.html"))  # the templates came along
    call("-c", "from dfdc_lib.rehearsal import autoencoder as a; a.load_autoencoder()")


def count_lines(*patterns: str) -> int:
    return sum(len(p.read_text().splitlines()) for each in patterns for p in ROOT.glob(each))


def test_the_house_stays_small():
    """As the formatter lays it out (`test_linters_pass`), comments and docstrings included."""
    assert count_lines("dfdc_lib/*.py") <= 3648
    assert count_lines("dfdc_lib/**/*.py") <= 8144
    assert count_lines("tests/**/*.py") <= 8232


def walk_library():
    """(path, its syntax tree) of each module."""
    for path in sorted((ROOT / "dfdc_lib").rglob("*.py")):
        yield path, ast.parse(path.read_text())


def test_functions_are_short():
    """Without docstring: half of them have at most eight lines, and none over 45."""
    lengths = {}
    for path, tree in walk_library():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                said = node.body[0] if ast.get_docstring(node) else None
                n_said = said.end_lineno - said.lineno + 1 if said else 0
                length = node.end_lineno - node.lineno + 1 - n_said
                lengths[f"{path.stem}.{node.name} line {node.lineno}"] = length
    assert statistics.median(lengths.values()) <= 8
    assert {name for name, length in lengths.items() if length > 45} == set()


def test_no_two_functions_have_one_name():
    """Outside of classes; a reader who looks one up finds one."""
    tops = [node for _, tree in walk_library() for node in tree.body]
    names = [node.name for node in tops if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    public = Counter(name for name in names if not name.startswith("_"))
    assert [name for name, times in public.items() if times > 1] == []
