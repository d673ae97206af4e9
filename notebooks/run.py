"""Run the notebooks in order with papermill, and build the site from the copies.

run_all.sh calls it. A notebook that was executed with the same source, parameters and
library is kept. One that finds too little data for its work (`NotEnough`) ends there,
its page says why, and the others go on. reports/<profile>/ holds notebooks/ (executed
copies), source/ (what Sphinx reads) and site/ (open site/index.html).
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import papermill
import yaml
import zmq
from dfdc_lib.metadata import find_parts, read_metadata
from dfdc_lib.progress import NotEnough, text_progress
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEXT_STEPS = "see ./run_all.sh --help"
# Papermill's cell with a run's parameters begins so on the site.
GIVEN = "# What this run was given: it counts, and not the values above."


class UsageError(Exception):
    """Something the caller can mend; the message says how."""


class SiteError(Exception):
    """The notebooks ran, but Sphinx failed."""


@dataclass
class Outcome:
    """What became of one notebook."""

    name: str
    seconds: float
    kept: bool = False
    error: str = ""
    left_out: str = ""  # why its page ends early
    warnings: tuple[str, ...] = ()  # of libraries, on its page


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of run_all.sh (its --help describes them)."""
    parser = argparse.ArgumentParser(
        "run_all.sh",
        usage="./run_all.sh [options]   (--help lists them)",
        add_help=False,
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
    )
    parser.add_argument("--sweep", nargs=2, metavar=("NAME", "VALUES"))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--no-site", action="store_true")
    return parser.parse_args(argv)


def choose_notebooks(only: str, folder: Path = HERE) -> list[Path]:
    """The notebooks to run, in order. only: numbers joined by commas; empty: all."""
    notebooks = {
        path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    }
    wanted = [part.strip() for part in only.split(",") if part.strip()] or list(
        notebooks
    )
    unknown = [number for number in wanted if number not in notebooks]
    if unknown:
        raise UsageError(
            f"--only: no notebook {', '.join(unknown)}; "
            f"choose among {', '.join(notebooks)}"
        )
    return [notebooks[number] for number in sorted(wanted)]


def read_profile(name: str) -> dict[str, dict]:
    """A profile's parameters: {"all": {...}, "<notebook>": {...}}."""
    known = sorted(path.stem for path in (HERE / "profiles").glob("*.yaml"))
    if name not in known:
        raise UsageError(
            f"--profile: no profile {name!r}; choose among {', '.join(known)}"
        )
    return yaml.safe_load((HERE / "profiles" / f"{name}.yaml").read_text())


def prepare_data(data: Path | None, profile: str) -> Path:
    """Return the data folder, checked; by default the sample, made if missing."""
    if data is None and profile == "full":
        raise UsageError(
            "--profile full needs --data DIR, "
            "the folder that holds dfdc_train_part_0, …"
        )
    if data is None:
        return make_sample(
            ROOT / "data" / "sample",
            progress=text_progress("sample: original videos filmed"),
        )
    try:
        read_metadata(data)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--data: {error}") from error
    return data.resolve()


def collect_parameters(
    notebook: Path, profile: dict[str, dict], folders: dict[str, str], given: list
) -> dict:
    """The values for one notebook's parameters cell.

    The profile comes first, then the folders, then what the caller gave.
    """
    known = papermill.inspect_notebook(notebook)
    values = {
        name: value
        for name, value in (profile.get("all", {}) | folders).items()
        if name in known
    }
    values |= profile.get(notebook.stem, {})
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(
            f"the profile sets {', '.join(unknown)}, "
            f"which {notebook.name} does not have"
        )
    return values | {
        name: yaml.safe_load(text) for name, text in given if name in known
    }


def plan_runs(
    notebooks: list[Path], parameters: dict[Path, dict], sweep: tuple[str, str] | None
) -> list[tuple]:
    """(notebook, values, name of the executed copy): one for each notebook.

    With a sweep: one for each of its values; one without that parameter runs once.
    """
    plans = []
    for notebook in notebooks:
        values = parameters[notebook]
        if sweep is None or sweep[0] not in papermill.inspect_notebook(notebook):
            plans.append((notebook, values, notebook.stem))
            continue
        for text in sweep[1].split(","):
            word = "".join(c if c.isalnum() else "-" for c in text.strip())
            plans.append(
                (
                    notebook,
                    values | {sweep[0]: yaml.safe_load(text)},
                    f"{notebook.stem}_{sweep[0]}_{word}",
                )
            )
    return plans


def check_given(notebooks: list[Path], given: list) -> None:
    """A misspelt parameter is an error: papermill alone would only mention it."""
    known = sorted(
        {
            name
            for notebook in notebooks
            for name in papermill.inspect_notebook(notebook)
        }
    )
    for name, text in given:
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(
                f"-p: {name} has a value that can't be read: {text}"
            ) from error
        if name not in known:
            raise UsageError(
                f"-p: no parameter {name!r} in these notebooks; "
                f"choose among {', '.join(known)}"
            )


def fingerprint(notebook: Path, values: dict, folders: tuple[Path, Path]) -> str:
    """What an executed copy depends on, as a digest.

    Notebook, parameters, data, versions, library, and the tables that it shows.
    """
    data, _ = folders
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for path in (
        notebook,
        *ROOT.glob("requirements.lock"),
        *find_parts(data),
        *sorted((ROOT / "dfdc_lib").rglob("*.py")),
        *sorted((ROOT / "dfdc_lib").rglob("*.npz")),
        *sorted((ROOT / "experiments").glob("*.csv")),
        *(ROOT / "experiments").glob("scorecard.py"),
        *sorted((ROOT / "benchmarks").rglob("*.csv")),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint_runs(notebook: Path, values: dict, work: Path) -> str:
    """What else it depends on: runs in the work folder.

    `"reads_run": "{ENCODER}_…"` in its metadata names one by the notebook's parameters;
    `"reads_all_runs": true` means all that is in the work folder.
    """
    metadata, tables = json.loads(notebook.read_text())["metadata"], []
    if "reads_run" in metadata:
        given = {
            name: about["default"].strip("\"'")
            for name, about in papermill.inspect_notebook(notebook).items()
        }
        tables = [
            *(work / "runs" / metadata["reads_run"].format_map(given | values)).glob(
                "*.csv"
            )
        ]
    if metadata.get("reads_all_runs"):
        tables = [*work.glob("*.csv"), *work.glob("runs/*/*.csv")]
    return "".join(
        f"\n{path} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(tables)
    )


class QuietKernel(AsyncKernelManager):
    """A kernel that encrypts if it can, instead of a warning that it does not.

    It draws figures with two pixels for each of the page's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if zmq.has("curve"):
            self.transport_encryption = "auto"

    async def _async_start_kernel(self, **options):
        sharp = "--InlineBackend.figure_format=retina"
        options["extra_arguments"] = [*options.get("extra_arguments", []), sharp]
        await super()._async_start_kernel(**options)

    start_kernel = _async_start_kernel


def run_notebook(
    notebook: Path,
    values: dict,
    executed: Path,
    folders: tuple[Path, Path],
    fresh: bool,
) -> Outcome:
    """Execute one notebook, unless its copy and artifacts are up to date.

    executed: where the copy goes. folders: where the data and the artifacts lie.
    """
    mark = executed.with_name(f".{executed.stem}.made-from")
    made_from, stands = (
        fingerprint(notebook, values, folders),
        folders[1].exists() and executed.exists() and mark.exists(),
    )
    if (
        not fresh
        and stands
        and mark.read_text()
        == made_from + fingerprint_runs(notebook, values, folders[1])
    ):
        return Outcome(executed.stem, 0, kept=True)
    executed.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            values,
            cwd=HERE,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            kernel_manager_class=QuietKernel,
            start_timeout=600,  # seconds: a busy machine starts a kernel slowly
        )
    except DeadKernelError as error:  # killed, most often for memory
        lost = (
            f"{notebook.name}: the kernel died: {error}\nhalf-executed copy: {executed}"
        )
        return Outcome(executed.stem, time.monotonic() - started, error=lost)
    except PapermillExecutionError as error:
        if error.ename == NotEnough.__name__:
            outcome = Outcome(
                executed.stem, time.monotonic() - started, left_out=error.evalue
            )
            return finish_page(executed, outcome, folders[0])
        cell = (
            f"cell {error.exec_count} of {notebook.name}: {error.ename}: {error.evalue}"
        )
        return Outcome(
            executed.stem,
            time.monotonic() - started,
            error=f"{cell}\nhalf-executed copy: {executed}",
        )
    # As it is now: it may have trained.
    mark.write_text(made_from + fingerprint_runs(notebook, values, folders[1]))
    return finish_page(
        executed, Outcome(executed.stem, time.monotonic() - started), folders[0]
    )


def finish_page(executed: Path, outcome: Outcome, data: Path) -> Outcome:
    """Make an executed copy fit to be read.

    End it where its notebook did, and say that the figures' texts are the demo's.

    Returns the outcome, with the warnings that libraries have left on the page.
    """
    page = nbformat.read(executed, as_version=4)
    if outcome.left_out:
        executed.with_name(f".{executed.stem}.made-from").write_text(
            "ended early: run it again"
        )
        page.cells = [
            cell
            for cell in page.cells
            if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
        ]
        end = next(
            i
            for i, cell in enumerate(page.cells)
            if any(o.output_type == "error" for o in outputs_of(cell))
        )
        reason = f"**The rest of this page is left out:** {outcome.left_out}."
        page.cells[end:] = [nbformat.v4.new_markdown_cell(reason)]
    if not (data / "sample.json").exists():
        for figure in (
            cell.metadata.get("mystnb", {}).get("image", {}) for cell in page.cells
        ):
            figure |= (
                {"alt": f"In the demo: {figure['alt']}"} if "alt" in figure else {}
            )
    nbformat.write(page, executed)
    said = (
        "".join(o.text)
        for cell in page.cells
        for o in outputs_of(cell)
        if o.get("name") == "stderr"
    )
    warned = [
        line for text in said for line in text.splitlines() if "warning" in line.lower()
    ]
    return replace(outcome, warnings=tuple(warned))


def forget_lost_pages(executed: Path) -> None:
    """Remove pages whose notebook is gone or renamed: the site does not show them."""
    names = tuple(notebook.stem for notebook in choose_notebooks(""))
    for mark in executed.glob(".*.made-from"):
        if not mark.name[1:].startswith(names):
            mark.unlink()


def outputs_of(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """What a cell has printed and drawn; nothing for prose."""
    return cell.get("outputs", [])


def pack_code(archive: Path) -> None:
    """Pack what is committed, for the site to hand on; outside a clone, nothing."""
    command = ["git", "archive", "--format=tar.gz", "--prefix=course/", "HEAD"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        packed = subprocess.run(command, cwd=ROOT, capture_output=True)
        if packed.returncode == 0:
            archive.write_bytes(packed.stdout)


def build_site(report: Path) -> Path:
    """Build the site from docs/ and every executed notebook; return its first page."""
    source = report / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source)
    readme = (ROOT / "README.md").read_text()  # pages include parts of it
    (source / "README.md").write_text(readme.replace("](docs/", "]("))
    (source / "notebooks").mkdir()
    (source / "experiments").mkdir()
    for file in (ROOT / "experiments").glob("*.*"):
        shutil.copy(file, source / "experiments")  # a page reads their tables
    card = ROOT / "benchmarks" / "gpu"
    (source / "gpu").mkdir()
    for file in (*card.glob("*.csv"), *card.glob("*.png")):
        shutil.copy(file, source / "gpu")
    pack_code(source / "course.tar.gz")
    for executed in sorted((report / "notebooks").glob("*.ipynb")):
        if (report / "notebooks" / f".{executed.stem}.made-from").exists():
            text = executed.read_text()
            text = text.replace("](../docs/", "](../")  # they lie beside it there
            text = text.replace(
                '"# Parameters\\n"', f'"{GIVEN}\\n"'
            )  # papermill's words
            (source / "notebooks" / executed.name).write_text(text)
    shutil.rmtree(report / "site", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(source),
        str(report / "site"),
    ]
    if any(
        not (source / "notebooks" / notebook.name).exists()
        for notebook in choose_notebooks("")
    ):
        # Links to pages that have not run yet.
        command += ["-D", "suppress_warnings=myst.xref_missing"]
    if subprocess.run(command).returncode:
        raise SiteError(f"the site could not be built: {' '.join(command)}")
    return report / "site" / "index.html"


def summarise(outcomes: list[Outcome], site: Path | None, pages: Path) -> None:
    """The last lines: each notebook's time, what it left out, warnings, failures."""
    print("\nnotebook                        time")
    for outcome in outcomes:
        state = (
            "kept"
            if outcome.kept
            else f"{outcome.seconds:.0f} s" + ("  FAILED" if outcome.error else "")
        )
        print(f"{outcome.name:<30}  {state}")
        if outcome.left_out:
            print(f"    ends early: {outcome.left_out}")
    print(f"\nsite: {site}" if site else f"\npages: {pages}")
    for outcome in outcomes:
        for line in outcome.warnings:
            print(f"WARNING on the page of {outcome.name}: {line}")
        if outcome.error:
            print(f"\nFAILED {outcome.error}\nthe next ./run_all.sh goes on from here")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for. Return 0; 1 if a notebook failed; 2 for a wrong call."""
    args = parse_arguments(argv)
    try:
        notebooks, profile = choose_notebooks(args.only), read_profile(args.profile)
        check_given(notebooks, args.parameters + ([args.sweep] if args.sweep else []))
        data = prepare_data(args.data, args.profile)
        work = args.work.resolve() if args.work else WorkFolder.beside(data).root
        folders = {"DATA": str(data), "WORK": str(work)}
        parameters = {
            n: collect_parameters(n, profile, folders, args.parameters)
            for n in notebooks
        }
        plans = plan_runs(notebooks, parameters, args.sweep)
        report = ROOT / "reports" / args.profile
        outcomes = []
        for number, (notebook, values, name) in enumerate(plans, 1):
            print(f"[{number}/{len(plans)}] {name}", flush=True)
            executed = report / "notebooks" / f"{name}.ipynb"
            outcomes.append(
                run_notebook(notebook, values, executed, (data, work), args.fresh)
            )
            if outcomes[-1].error:
                break
        forget_lost_pages(report / "notebooks")
        failed = any(outcome.error for outcome in outcomes)
        site = build_site(report) if not (failed or args.no_site) else None
    except (UsageError, FileExistsError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    except SiteError as error:
        summarise(outcomes, None, report / "notebooks")
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 1
    summarise(outcomes, site, report / "notebooks")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
