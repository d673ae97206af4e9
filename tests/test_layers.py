"""The core is read from top to bottom, and the wings stand on it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "dfdc_lib"
CORE = (  # in reading order: a module imports only from those before it
    ("config", "store", "progress", "jobs"),
    ("metadata", "metrics"),
    ("geometry", "video", "faces"),
    ("ssim", "preprocess"),
    ("blending", "augment"),
    ("dataset", "model", "aggregate", "train"),
    ("predict",),
    ("plots",),
)
ORDER = [module for row in CORE for module in row]
CHOOSE_FAST = {"faces", "predict", "train"}  # inside the function that chooses it
WINGS = {"rehearsal": {"core"}, "fast": {"core"}, "ops": {"core", "rehearsal", "fast", "ops"}}
NO_DISK = ["geometry", "ssim", "metrics", "aggregate", "blending", "augment", "plots"]
NO_DISK += ["rehearsal.manipulate", "rehearsal.forensics"]
FILES = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in LIBRARY.rglob("*.py")
    if path.stem != "__init__"
}
MODULES = sorted(FILES)


def imported_modules(module: str, top_level: bool = False) -> set[str]:
    """The full names of what a module imports; from a package also what it takes out of it."""
    tree = ast.parse(FILES[module].read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def own_modules(module: str, top_level: bool = False) -> set[str]:
    names = imported_modules(module, top_level)
    return {name.removeprefix("dfdc_lib.") for name in names} & set(MODULES)


def wing(module: str) -> str:
    return module.split(".")[0] if "." in module else "core"


def test_every_module_of_the_core_has_its_place():
    assert sorted(ORDER) == [module for module in MODULES if wing(module) == "core"]
    assert {wing(module) for module in MODULES} == {"core", *WINGS}


def test_contributors_see_the_same_order():
    text = (LIBRARY.parent / "CONTRIBUTING.md").read_text()
    for row in CORE:
        assert f"| {', '.join(f'`{module}`' for module in row)} |" in text


@pytest.mark.parametrize("module", ORDER)
def test_the_core_imports_only_what_was_read_before(module):
    own = own_modules(module)
    assert {n for n in own if wing(n) == "core"} <= set(ORDER[: ORDER.index(module)])
    others = {n for n in own if wing(n) != "core"}
    assert {wing(n) for n in others} <= ({"fast"} if module in CHOOSE_FAST else set())
    assert not others & own_modules(module, top_level=True)


@pytest.mark.parametrize("module", [name for name in MODULES if wing(name) != "core"])
def test_a_wing_imports_the_core_and_ops_the_others(module):
    own = own_modules(module)
    assert {wing(n) for n in own} <= WINGS[wing(module)] | {wing(module)}


@pytest.mark.parametrize("module", NO_DISK)
def test_pure_modules_do_not_touch_the_disk(module):
    assert not imported_modules(module) & {"pathlib", "os", "shutil", "io", "dfdc_lib.store"}
    source = FILES[module].read_text()
    calls = ("open(", "imread", "imwrite", "savefig", "read_csv", "to_csv")
    assert not [call for call in calls if call in source]


def test_importing_the_library_loads_no_model_sets_no_seed_and_needs_no_unix():
    """Windows has none of the modules that are taken away here, and fewer signals."""
    code = (
        "import importlib, os, random, signal, sys; state = random.getstate();"
        "sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'pwd', 'termios')));"
        "del os.sched_getaffinity, os.fork, signal.SIGKILL;"
        f"[importlib.import_module('dfdc_lib.' + m) for m in {MODULES} if m != 'fast.mtcnn'];"
        "assert random.getstate() == state;"
        "assert sys.modules['dfdc_lib.jobs'].count_cores() == os.cpu_count();"
        "assert not {'facenet_pytorch', 'timm'} & set(sys.modules);"
        "import dfdc_lib.fast.mtcnn"  # which needs the former's arithmetic
    )
    subprocess.run([sys.executable, "-c", code], check=True)
