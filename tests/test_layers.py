"""A module imports only from rows above it: the house stays easy to picture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "dfdc_lib"
ROWS = [
    ["config", "geometry"],
    ["paths", "progress", "video", "ssim", "metrics", "aggregate", "plots", "forensics", "inference"],
    ["metadata", "mtcnn", "manipulate", "augment", "tasks"],
    ["faces"],
    ["sample", "preprocess", "dataset", "model"],
    ["train", "predict"],
    ["doctor", "report", "estimate"],
    ["submission", "integrity"],
    ["cli"],
]
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}
NO_DISK = ["geometry", "ssim", "metrics", "aggregate", "manipulate", "augment", "plots", "forensics"]
MODULES = sorted(path.stem for path in LIBRARY.glob("*.py") if path.stem != "__init__")


def imported_modules(module: str) -> set[str]:
    tree = ast.parse((LIBRARY / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "dfdc_lib" else {f"dfdc_lib.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_every_module_has_its_row():
    assert sorted(ROW_OF) == MODULES


def test_contributors_see_the_same_rows():
    lines = (LIBRARY.parent / "CONTRIBUTING.md").read_text().splitlines()
    for number, row in enumerate(ROWS):
        assert f"| {number} | {', '.join(f'`{module}`' for module in row)} |" in lines


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_rows_above(module):
    inner = {name.removeprefix("dfdc_lib.") for name in imported_modules(module) if name.startswith("dfdc_lib.")}
    wrong = {name for name in inner if ROW_OF[name] >= ROW_OF[module]}
    assert not wrong, f"{module} imports {wrong} from its own row or below"


@pytest.mark.parametrize("module", NO_DISK)
def test_pure_modules_do_not_touch_the_disk(module):
    source = (LIBRARY / f"{module}.py").read_text()
    assert not imported_modules(module) & {"pathlib", "os", "shutil", "io", "dfdc_lib.paths"}
    for call in ("open(", "imread", "imwrite", "savefig", "read_csv", "to_csv"):
        assert call not in source, f"{module} calls {call}"


def test_importing_the_library_loads_no_model_and_sets_no_seed():
    code = (
        "import importlib, random, sys; state = random.getstate();"
        f"[importlib.import_module('dfdc_lib.' + m) for m in {MODULES}];"
        "assert random.getstate() == state; assert not {'facenet_pytorch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
