"""The `dfdc` command: what the notebooks do, for scripts and clusters.

Each subcommand is a class: its fields and its configuration's are the options, and the comments
beside them are the help.
"""

import io
import json
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from dfdc_lib import config
from dfdc_lib.jobs import TIME_LIMIT, answer_signals, count_cores
from dfdc_lib.ops.weights import RELEASED, choose_names, fetch_weights, find_weights, weights_folder
from dfdc_lib.progress import progress_bar

GOES_ON = "what is done is kept, and the same command continues from there"
# How options look; a margin is one word.
Switch = FlagCreatePairsOff[bool]
SEVERAL = arg(metavar="VIDEO_PICTURE_OR_FOLDER …", help_behavior_hint="(required)")
Videos = Annotated[Positional[tuple[Path, ...]], SEVERAL]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE …")]
Start = Annotated[tuple[Path, ...] | None, arg(metavar="[FILE_OR_FOLDER]")]
MARGIN = PrimitiveConstructorSpec(
    nargs=1,
    metavar="SHARE_OR_NAME",
    instance_from_str=lambda words: config.Margin.parse(words[0]),
    is_instance=lambda value: isinstance(value, config.Margin),
    str_from_instance=lambda margin: [str(margin)],
)


@dataclass
class Sample:
    """Make the sample, a mini data set: 64 originals and 128 fakes, all synthetic."""

    out: Positional[Path]  # the folder to make
    seed: int = 0  # another seed makes other videos
    workers: int = field(default_factory=count_cores)  # processes that film

    def __call__(self) -> int:
        from dfdc_lib.rehearsal.sample import make_sample

        progress = progress_bar("original videos filmed")
        make_sample(self.out, seed=self.seed, workers=self.workers, progress=progress)
        print(f"sample ready in {self.out}")
        return 0


@dataclass
class Adopt:
    """Lay out another data set like DFDC's: links and metadata.json; nothing is copied."""

    # ffpp, dfd, celebdf, dfdcp, dfdc-test, or folders called real and fake
    layout: Positional[Literal["ffpp", "dfd", "celebdf", "dfdcp", "dfdc-test", "folders"]]
    source: Positional[Path]  # where the data set is
    out: Positional[Path]  # the folder to make
    compression: str = ""  # for ffpp and dfd: c0, raw, c23 or c40, if there are several
    splits: str = ""  # only these official splits, separated by commas: train,val; without it, all

    def __call__(self) -> int:
        from dfdc_lib.ops.adopt import adopt, describe_adoption

        splits = [split.strip() for split in self.splits.split(",") if split.strip()]
        table = adopt(self.layout, self.source, self.out, self.compression, splits)
        print(describe_adoption(table))
        print(f"{(table.part >= 0).sum()} videos are linked in {self.out}")
        return 0


@dataclass
class Preprocess:
    """Turn videos into boxes, crops, masks and folds."""

    data: Positional[Path]  # the folder that holds dfdc_train_part_0, …
    recipe: OmitArgPrefixes[config.PreprocessConfig]
    work: Path | None = None  # where artifacts go; without it, work/<name> beside the data
    stages: str = "detect,crop,masks,folds"  # which stages to run, separated by commas
    originals: int = 0  # use only this many, spread evenly over the parts; 0: all
    folds: int = 16  # make at most this many
    overwrite: Switch = False  # begin again if the work folder has a different recipe
    workers: int = field(default_factory=count_cores)  # processes; 0: this one does all, unguarded
    scheduler: str = ""  # the address of a Dask scheduler, whose workers do the work: tcp://…
    time_limit: float = TIME_LIMIT  # seconds that a worker may take for one video

    def __call__(self) -> int:
        from dfdc_lib.ops.pipeline import preprocess
        from dfdc_lib.store import WorkFolder

        work = WorkFolder(self.work) if self.work else WorkFolder.beside(self.data)
        try:
            work.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # data are often read-only
            fix = f"({error.strerror}): name another folder with --work"
            raise OSError(f"can't write to {work.root} {fix}") from error
        stages = [stage.strip() for stage in self.stages.split(",")]
        amount = (self.workers, self.originals, self.folds, stages, self.scheduler, self.time_limit)
        progress = progress_bar("videos")
        done = preprocess(self.data, work, self.recipe, *amount, self.overwrite, progress)
        for (stage, action), count in done.actions.items():
            print(f"{stage}: {count} {action}")
        if done.folds:
            print(f"folds: {done.folds}")
        bad = done.status[done.status.status != "ok"]
        if len(bad):
            print(f"not ok (the reasons are in {work.status}):", file=sys.stderr)
            groups = bad.groupby(["stage", "status"], sort=False, as_index=False)
            table = groups.agg(videos=("video_id", "size"), such_as=("video_id", "first"))
            print(table.to_string(index=False), file=sys.stderr)
        return 1 if len(bad) or any(action == "not ready" for _, action in done.actions) else 0


@dataclass
class Train:
    """Train a network on a work folder's crops; under torchrun, on several GPUs."""

    work: Path  # a work folder that `dfdc preprocess` made
    run: str  # the run's name: runs/<name>
    settings: OmitArgPrefixes[config.TrainConfig]
    preset: config.Preset = "slides"  # the defaults · demo, transfer: the sample, on two cores
    pretrained: Start = None  # start from ImageNet's weights; no value: timm's, or lite's package
    workers: int = 0  # processes that read crops
    keep_every: int = 0  # epochs from one kept checkpoint to the next; 0: keep none
    overwrite: Switch = False  # replace a run of this name that has different settings

    def choose_start(self) -> bool | Path:
        """The weights to start from: a file or folder, True for ImageNet's, False for random."""
        if self.pretrained:
            return self.pretrained[0]
        from dfdc_lib.model import LITE

        small = self.preset != "slides" and self.settings.encoder in LITE
        return self.pretrained is not None or small

    def __call__(self) -> int:
        from dfdc_lib.store import WorkFolder
        from dfdc_lib.train import train

        start = self.choose_start()
        where = (WorkFolder(self.work), self.settings, self.run, start, self.workers)
        options: dict = {"overwrite": self.overwrite, "keep_every": self.keep_every}
        run = train(*where, progress=progress_bar("step"), **options)
        if not run.finished:
            print(f"stopped after step {len(run.losses)}; {GOES_ON}", file=sys.stderr)
            return 130
        loss = run.metrics.valid_loss.iloc[-1]
        print(f"checkpoint: {run.checkpoint}; validation log loss {loss:.3f}")
        return 0


@dataclass
class Weights:
    """Fetch the winner's seven networks (1.9 GB) and check them; call again to resume."""

    folder: Positional[Path] = field(default_factory=weights_folder)  # where they go
    only: str = ""  # only the networks of these seeds: 111,555; without it, all
    mirror: str = ""  # an address or a folder that has the files; without it, upstream's release

    def __call__(self) -> int:
        from dfdc_lib.ops.doctor import check_checkpoints

        progress = progress_bar("bytes")
        paths = fetch_weights(self.folder, choose_names(self.only), self.mirror, progress)
        return print_findings(check_checkpoints(paths))


@dataclass
class Predict:
    """Score videos and pictures: are they fake?"""

    videos: Videos  # videos, pictures, or folders that hold some at any depth
    settings: OmitArgPrefixes[config.PredictConfig]
    checkpoint: Files = ()  # whose scores to average; without it, those of `dfdc weights`
    out: Path | None = None  # write a submission here, status.csv and predictions.parquet beside it
    fallback: float | None = None  # the score to submit for videos that have none
    report: Path | None = None  # write a page about each video into this folder
    workers: int | None = None  # processes that find faces; without it, 1 for several videos
    scheduler: str = ""  # the address of a Dask scheduler, whose workers do the work: tcp://…
    time_limit: float = TIME_LIMIT  # seconds that a worker may take for one video

    def __call__(self) -> int:
        from dfdc_lib.ops import submission
        from dfdc_lib.predict import load_models

        if not self.videos:
            raise ValueError("name the videos to score, or their folders, before any option")
        videos, others = submission.find_videos(self.videos)
        if others:
            told = f"{len(others)} files, e.g. {others[0]}"
            print(f"left out, not videos or pictures by their names: {told}", file=sys.stderr)
        if self.out:
            submission.check_results(self.out)
        models = load_models(self.checkpoint or choose_released(), self.settings)
        if any(scorer.model.card.trained_on == "sample" for scorer in models.values()):
            print(f"warning: {submission.REHEARSAL_WARNING}", file=sys.stderr)
        workers = min(len(videos) - 1, 1) if self.workers is None else self.workers
        where = (self.out, workers, self.scheduler, self.time_limit)
        pages, verdicts = name_pages(submission.name_videos(videos), self.report), {}
        for verdict in submission.score_files(videos, models, self.settings, *where):
            verdicts[verdict.video] = verdict
            place = f"{len(verdicts)}/{len(videos)} " if len(videos) > 1 else ""
            print(f"{place}{submission.describe_verdict(verdict)}", flush=True)
            if self.report:
                add_page(verdict, models, self.report / pages[verdict.video], self.settings)
        in_order = [verdicts[video] for video in videos]
        if self.out:
            submission.write_results(in_order, self.out, self.fallback)
            print(f"wrote {self.out}, with status.csv and predictions.parquet beside it")
        print(submission.describe_scores(in_order, self.fallback))
        return 0 if all(verdict.p_fake is not None for verdict in in_order) else 1


def choose_released() -> list[Path]:
    """The winner's networks, where they have been fetched. Raises ValueError."""
    paths = find_weights()
    if not paths:
        other = "--checkpoint names another, e.g. data/work/sample/runs/start_here/last.pt"
        raise ValueError(f"no checkpoint: `dfdc weights` fetches the winner's seven; {other}")
    print(f"using {len(paths)} of the winner's {len(RELEASED)} networks", file=sys.stderr)
    return paths


def name_pages(names: dict[Path, str], folder: Path | None = None) -> dict[Path, str]:
    """Give each video's page a name that a disk takes and no other video's has, there or here."""
    pages: dict[Path, str] = {}
    for video, name in names.items():
        place, plain = os.path.abspath(video), f"{name.replace(os.sep, '__')}.html"
        record = Path(folder or "", plain).with_suffix(".json")
        fits = len(plain.encode()) <= 150 and plain not in pages.values()
        if fits and folder and record.exists():  # of an earlier call: it may be evidence
            fits = json.dumps(place).encode() in record.read_bytes()
        pages[video] = plain if fits else f"{plain[:60]}_{zlib.crc32(place.encode()):08x}.html"
    return pages


def add_page(verdict, models: dict, path: Path, settings: config.PredictConfig) -> None:
    """Write the page about a video, or say why not: the verdict stands."""
    from dfdc_lib.ops.pages import write_page
    from dfdc_lib.video import VideoError

    try:
        print(f"page: {write_page(verdict, models, path, settings)}")
    except (OSError, ValueError, RuntimeError, MemoryError, VideoError) as error:
        print(f"no page about {verdict.video}: {error}", file=sys.stderr)


@dataclass
class Evaluate:
    """Measure scores against the truth: AUC, EER, AP and others, each with its interval."""

    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="RESULTS …")]  # of predict --out
    labels: Annotated[tuple[Path, ...], arg(metavar="DATA …")]  # data folders, or CSV files
    out: Path | None = None  # write evaluation.html, .csv and .json into this folder
    false_alarms: float = 0.05  # choose the threshold that at most this share of reals reach
    fit_on: str = ""  # choose the threshold, and fit scaling, on this split; measure the others
    scaling: Literal["", "temperature", "platt"] = ""  # fit it, and keep it beside the checkpoint
    leaks: Switch = True  # with --out: check whether data sets share originals

    def __call__(self) -> int:
        from dfdc_lib.ops import evaluation, evaluation_page, leaks

        if not self.results or not self.labels:
            raise ValueError("name the results to measure, and the truth about them with --labels")
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)  # a file of this name ends it now
        how = (self.false_alarms, self.fit_on, self.scaling)
        found = evaluation.evaluate(self.results, self.labels, *how)
        print("\n".join(found.notes), file=sys.stderr, end="\n" * bool(found.notes))
        print(evaluation_page.describe_evaluation(found.table))
        if self.out:
            seen = None
            if self.leaks and found.truth.data_set.nunique() > 1:
                seen = leaks.find_leaks(found.truth, progress_bar("originals compared"))
                if len(seen[0]):
                    told = "originals of one data set are also in another: see the page"
                    print(f"a leak: {len(seen[0])} {told}", file=sys.stderr)
            write = evaluation_page.write_evaluation
            print(f"page: {write(found, self.out, self.false_alarms, self.fit_on, seen)}")
        return 0


@dataclass
class Verify:
    """Score a page's video again: is the result the same?"""

    record: Positional[Path]  # the JSON that `dfdc predict --report` writes beside a page
    video: Path | None = None  # where the video is now; without it, where it was
    checkpoint: Files = ()  # where the checkpoints are now, in the same order

    def __call__(self) -> int:
        from dfdc_lib.ops.records import verify_record

        code = print_findings(verify_record(self.record, self.video, self.checkpoint))
        print("not equal: BAD says what differs" if code else "equal: the result is the same")
        return code


@dataclass
class Doctor:
    """Say what works here, what does not, and what to do."""

    data: Path | None = None  # the folder that holds dfdc_train_part_0, …: is it complete?
    work: Path | None = None  # a work folder: is it complete and undamaged?
    pictures: Switch = False  # also decode every crop and mask in it
    strike: Switch = False  # have the next `dfdc preprocess` redo what is wrong in it
    estimate: int = 0  # from a few videos, how long this many workers take to preprocess --data
    checkpoint: Files = ()  # files or folders: are they upstream's, do they load, do they work?

    def __call__(self) -> int:
        from dfdc_lib.ops.doctor import check_checkpoints, check_data, check_environment
        from dfdc_lib.ops.estimate import estimate_run
        from dfdc_lib.ops.integrity import check_work
        from dfdc_lib.store import WorkFolder

        if self.estimate and not self.data:
            raise ValueError("an estimate needs some of your videos: name them with --data")
        findings = check_environment(self.data if self.data and self.data.exists() else ".")
        findings += [check_data(self.data)] if self.data else []
        if self.work:
            how = {"pictures": self.pictures, "strike": self.strike}
            findings += check_work(WorkFolder(self.work), **how)
        code = print_findings(findings + check_checkpoints(self.checkpoint))
        if self.data and self.estimate:
            print(f"preprocessing all of {self.data} with {self.estimate} workers takes about:")
            table = estimate_run(self.data, self.estimate)
            print(table.to_string(index=False, float_format="{:,.2f}".format))
        return code


def print_findings(findings: Sequence) -> int:
    """Print the doctor's findings; return the exit code, 1 where one is bad."""
    for finding in findings:
        advice = f" ({finding.advice})" if finding.advice else ""
        print(f"{'ok ' if finding.ok else 'BAD'} {finding.what}: {finding.found}{advice}")
    return 0 if all(finding.ok for finding in findings) else 1


def start_settings(
    preset: config.Preset = "slides", encoder: str = config.TrainConfig.encoder
) -> config.TrainConfig:
    """Choose training's defaults: a preset's; the slides' with the encoder's own batch."""
    if preset != "slides":
        return config.PRESETS[preset]
    return config.TrainConfig(encoder=encoder, batch=config.encoder_preset(encoder).batch)


def read_command(words: Sequence[str]) -> Callable[[], int]:
    """Read a subcommand and its options. Raises a ValueError of one line for wrong words."""
    tyro._experimental_options.update({"ansi_codes": False, "utf8_boxes": False})  # plain errors
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse_words(words)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        # tyro draws a box: the paragraph below its title says what is wrong.
        lines = (line.strip() for line in said.getvalue().splitlines()[2:])
        wrong = " ".join(takewhile(lambda line: line.strip("-"), lines))
        wrong = re.sub(r"^Error parsing (__tyro\S+: )?", "", wrong).rstrip(".")
        raise ValueError(f"{wrong} (see --help)") from None


def parse_words(words: Sequence[str]) -> Callable[[], int]:
    """Read a subcommand with tyro, which prints what is wrong and exits."""
    registry = ConstructorRegistry()
    registry.primitive_rule(lambda info: MARGIN if info.type is config.Margin else None)
    training, _ = tyro.cli(start_settings, args=words, return_unknown_args=True, add_help=False)
    train = tyro.conf.subcommand("train", default=Train(tyro.MISSING, tyro.MISSING, training))
    return tyro.cli(
        Sample
        | Adopt
        | Preprocess
        | Annotated[Train, train]
        | Weights
        | Predict
        | Evaluate
        | Verify
        | Doctor,
        prog="dfdc",
        description="The DFDC 1st-place solution, step by step.",
        args=words,
        config=(tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName),
        registry=registry,
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. An error that the user can fix prints one line."""
    try:
        command = read_command(sys.argv[1:] if argv is None else argv)
        with answer_signals(signal.default_int_handler, signal.SIGTERM):  # as clusters end jobs
            return command()
    except (OSError, ValueError) as error:
        print(f"dfdc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dfdc: stopped; {GOES_ON}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
