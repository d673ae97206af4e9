"""The `dfdc` command: what the notebooks do, for scripts and clusters.

One class a subcommand: its fields and those of the configurations are the options, and the comments
beside them are the help.
"""

import io
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from dfdc_lib import config
from dfdc_lib.jobs import TIME_LIMIT, count_cores
from dfdc_lib.progress import progress_bar

if TYPE_CHECKING:
    from dfdc_lib.predict import Verdict

# How options look. A margin is one word.
Switch = FlagCreatePairsOff[bool]
SEVERAL = arg(metavar="VIDEO_OR_FOLDER …", help_behavior_hint="(required)")
Videos = Annotated[Positional[tuple[Path, ...]], SEVERAL]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE …")]
Weights = Annotated[tuple[Path, ...] | None, arg(metavar="[FILE_OR_FOLDER]")]
MARGIN = PrimitiveConstructorSpec(
    nargs=1,
    metavar="SHARE_OR_NAME",
    instance_from_str=lambda words: config.Margin.parse(words[0]),
    is_instance=lambda value: isinstance(value, config.Margin),
    str_from_instance=lambda margin: [str(margin)],
)


@dataclass
class Sample:
    """Make the mini data set: 64 originals and 128 fakes, all synthetic."""

    out: Positional[Path]  # the folder to make
    seed: int = 0  # another one makes other videos
    workers: int = field(default_factory=count_cores)  # processes that film

    def __call__(self) -> int:
        from dfdc_lib.rehearsal.sample import make_sample

        progress = progress_bar("original videos filmed")
        make_sample(self.out, seed=self.seed, workers=self.workers, progress=progress)
        print(f"sample ready in {self.out}")
        return 0


@dataclass
class Preprocess:
    """Turn videos into boxes, crops, masks and folds."""

    data: Positional[Path]  # the folder that holds dfdc_train_part_0, …
    recipe: OmitArgPrefixes[config.PreprocessConfig]
    work: Path | None = None  # where artifacts go, if not to work/<name> beside the data
    stages: str = "detect,crop,masks,folds"  # the stages to do, with commas
    originals: int = 0  # take only so many, evenly over the parts; 0: all
    folds: int = 16  # at most so many
    overwrite: Switch = False  # begin again, where the work folder has another recipe
    workers: int = field(default_factory=count_cores)  # processes; 0: unguarded, without any
    scheduler: str = ""  # the address of a Dask scheduler, whose workers do the work: tcp://…
    time_limit: float = TIME_LIMIT  # seconds that a worker may take for one video

    def __call__(self) -> int:
        from dfdc_lib.ops.estimate import warn_of_space
        from dfdc_lib.ops.pipeline import preprocess
        from dfdc_lib.store import WorkFolder

        work = WorkFolder(self.work) if self.work else WorkFolder.beside(self.data)
        try:
            work.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # data often lie where nobody may write
            fix = f"({error.strerror}): name another folder with --work"
            raise OSError(f"can't write to {work.root} {fix}") from error
        stages = [stage.strip() for stage in self.stages.split(",") if stage.strip()]
        if "crop" in stages and (warning := warn_of_space(self.data, work, self.originals)):
            print(f"warning: {warning}", file=sys.stderr)
        amount = (self.workers, self.originals, self.folds, stages, self.scheduler, self.time_limit)
        progress = progress_bar("videos")
        done = preprocess(self.data, work, self.recipe, *amount, self.overwrite, progress)
        for (stage, action), count in done.actions.items():
            print(f"{stage}: {count} {action}")
        if done.folds:
            print(f"folds: {done.folds}")
        bad = done.status[done.status.status != "ok"]
        if len(bad):
            print(f"not ok, each with its reason in {work.status}:", file=sys.stderr)
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
    demo: Switch = False  # start from the demo's settings
    pretrained: Weights = None  # start from ImageNet's weights; without a value timm's download
    workers: int = 0  # processes that read crops
    keep_every: int = 0  # keep the weights of every so many epochs; 0: of none
    overwrite: Switch = False  # replace a run of this name that has other settings

    def __call__(self) -> int:
        from dfdc_lib.store import WorkFolder
        from dfdc_lib.train import train

        pretrained = self.pretrained[0] if self.pretrained else self.pretrained is not None
        where = (WorkFolder(self.work), self.settings, self.run, pretrained, self.workers)
        options: dict = {"overwrite": self.overwrite, "keep_every": self.keep_every}
        run = train(*where, progress=progress_bar("step"), **options)
        if not run.finished:
            goes_on = "the same command goes on from there"
            print(f"stopped after step {len(run.losses)}: {goes_on}", file=sys.stderr)
            return 130
        loss = run.metrics.valid_loss.iloc[-1]
        print(f"checkpoint: {run.checkpoint}; validation log loss {loss:.3f}")
        return 0


@dataclass
class Predict:
    """Score videos: is it a fake?"""

    videos: Videos  # videos, or folders that hold some at any depth
    checkpoint: Files  # one or more: the mean of their scores counts
    settings: OmitArgPrefixes[config.PredictConfig]
    out: Path | None = None  # write a submission here, status.csv and predictions.parquet beside it
    fallback: float | None = None  # the submission's score of videos that have none
    labels: Path | None = None  # the truth: a data folder, or a CSV with filename and label
    report: Path | None = None  # write a page about each video into this folder
    workers: int | None = None  # processes that find faces; without it 1 for several videos
    scheduler: str = ""  # the address of a Dask scheduler, whose workers do the work: tcp://…
    time_limit: float = TIME_LIMIT  # seconds that a worker may take for one video

    def __call__(self) -> int:
        from dfdc_lib.ops import submission
        from dfdc_lib.predict import REHEARSAL_WARNING, load_models

        if not self.videos:
            raise ValueError("name the videos to score, or folders that hold them")
        videos, others = submission.find_videos(self.videos)
        if others:
            kinds = Counter(path.suffix or path.name for path in others).most_common(8)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds)
            print(f"not videos by their names, left out: {len(others)} ({told})", file=sys.stderr)
        labels = submission.read_labels(self.labels) if self.labels else {}
        if labels:
            submission.match_labels(videos, labels)
        if self.out:
            submission.check_results(self.out, self.labels)
        models = load_models(self.checkpoint, self.settings)
        if any(scorer.model.card.trained_on == "sample" for scorer in models.values()):
            print(f"warning: {REHEARSAL_WARNING}", file=sys.stderr)
        workers = min(len(videos) - 1, 1) if self.workers is None else self.workers
        where = (self.out, workers, self.scheduler, self.time_limit)
        pages, verdicts = name_pages(submission.name_videos(videos)), {}
        for verdict in submission.score_files(videos, models, self.settings, *where):
            verdicts[verdict.video] = verdict
            place = f"{len(verdicts)}/{len(videos)} " if len(videos) > 1 else ""
            print(f"{place}{describe_verdict(verdict)}", flush=True)
            if self.report:
                add_page(verdict, models, self.report / pages[verdict.video])
        in_order = [verdicts[video] for video in videos]
        if self.out:
            submission.write_results(in_order, self.out, self.fallback)
            beside = f"{submission.STATUS} and {submission.PREDICTIONS}"
            print(f"wrote {self.out}, with {beside} beside it")
        tell_scores(in_order, labels, self.fallback)
        return 0 if all(verdict.p_fake is not None for verdict in in_order) else 1


def name_pages(names: dict[Path, str]) -> dict[Path, str]:
    """The file name of the page about each video, which a disk takes and no other video has."""
    plain = {video: name.replace(os.sep, "_") for video, name in names.items()}
    counts, pages = Counter(plain.values()), {}
    for number, (video, name) in enumerate(plain.items()):
        fits = len(name.encode()) <= 150 and counts[name] == 1
        pages[video] = f"{name}.html" if fits else f"{name[:60]}_{number}.html"
    return pages


def add_page(verdict: "Verdict", models: dict, path: Path) -> None:
    """Write the page about a video; where that fails, say so: the verdict stands."""
    from dfdc_lib.ops.pages import write_page
    from dfdc_lib.video import VideoError

    try:
        print(f"page: {write_page(verdict, models, path)}")
    except (OSError, ValueError, RuntimeError, MemoryError, VideoError) as error:
        print(f"no page about {verdict.video}: {error}", file=sys.stderr)


def describe_verdict(verdict: "Verdict") -> str:
    """A video's score, and why it has none, or is not of the whole video."""
    from dfdc_lib.video import printable

    words = f"{printable(verdict.video)}: {verdict.status}: "
    if verdict.p_fake is None:
        return words + verdict.reason
    words += f"p_fake {verdict.p_fake:.3f}, {verdict.n_faces} faces in {verdict.n_frames} frames"
    if len(people := verdict.people) > 1:
        words += ", by person " + ", ".join(f"{p:.3f}" for p in people.p_fake)
    return f"{words} ({verdict.reason})" if verdict.reason else words


def tell_scores(verdicts: "list[Verdict]", labels: dict[str, int], fallback: float | None) -> None:
    """How many videos have a score, what it means, and how good the scores are, by the labels."""
    from dfdc_lib.metrics import at_base_rate
    from dfdc_lib.ops.submission import measure_verdicts

    count = sum(verdict.p_fake is not None for verdict in verdicts)
    others = "" if fallback is None else f"; the others count as {fallback} in the submission"
    coverage = f"coverage {count / len(verdicts):.0%}"
    print(f"{count} of {len(verdicts)} videos have a score ({coverage}){others}")
    if count:
        share = f"a calibrated 0.9 means {at_base_rate(0.9, 0.01):.0%}"
        print(f"a score is no proof: where one video in a hundred is fake, {share}")
    if labels:
        instead = 0.5 if fallback is None else fallback
        found = measure_verdicts(verdicts, labels, instead)
        losses = found["log_loss_scored"], found["log_loss_all"]
        told = "log loss {:.3f} over the scored, {:.3f} over all".format(*losses)
        print(told if count == len(verdicts) else f"{told}, the others counted as {instead}")
        if unused := len(labels) - len(verdicts):
            print(f"{unused} videos have a label and were not among those given")


@dataclass
class Doctor:
    """Say what works here, what does not, and what to do."""

    data: Path | None = None  # the folder that holds dfdc_train_part_0, …: is it all there?
    work: Path | None = None  # a work folder: is all there and whole?
    pictures: Switch = False  # decode every crop and mask in it
    strike: Switch = False  # let the next `dfdc preprocess` make again what is wrong in it
    show: int = 3  # how many names to give of what is wrong in it
    estimate: int = 0  # what preprocessing --data will take so many workers, from a few videos
    checkpoint: Files = ()  # or folders: which bytes is it, does it load, does it tell fakes?

    def __call__(self) -> int:
        from dfdc_lib.ops.doctor import check_checkpoints, check_data, check_environment
        from dfdc_lib.ops.estimate import estimate_run
        from dfdc_lib.ops.integrity import check_work
        from dfdc_lib.store import WorkFolder

        if self.estimate and not self.data:
            raise ValueError("an estimate is made from some of your videos: name them with --data")
        findings = check_environment()
        findings += [check_data(self.data)] if self.data else []
        if self.work:
            how = (self.show, self.pictures, self.strike)
            findings += check_work(WorkFolder(self.work), self.data, *how)
        findings += check_checkpoints(self.checkpoint)
        for finding in findings:
            advice = f" ({finding.advice})" if finding.advice else ""
            print(f"{'ok ' if finding.ok else 'BAD'} {finding.what}: {finding.found}{advice}")
        if self.data and self.estimate:
            print(f"preprocessing all of {self.data} by {self.estimate} workers takes about:")
            table = estimate_run(self.data, self.estimate)
            print(table.to_string(index=False, float_format="{:,.2f}".format))
        return 0 if all(finding.ok for finding in findings) else 1


def start_settings(
    demo: Switch = False, encoder: str = config.TrainConfig.encoder
) -> config.TrainConfig:
    """Where training's settings start: the demo's, or the slides' with the encoder's own batch."""
    if demo:
        return config.DEMO_TRAINING
    return config.TrainConfig(encoder=encoder, batch=config.encoder_preset(encoder).batch)


def read_command(words: Sequence[str]) -> Callable[[], int]:
    """The subcommand that the words ask for. Raises ValueError, of one line, for wrong ones."""
    tyro._experimental_options["ansi_codes"] = False  # so that errors can be read
    tyro._experimental_options["utf8_boxes"] = False
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse_words(words)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise ValueError(shorten_error(said.getvalue())) from None


def parse_words(words: Sequence[str]) -> Callable[[], int]:
    """The subcommand, by tyro, which prints what is wrong and exits."""
    registry = ConstructorRegistry()
    registry.primitive_rule(lambda info: MARGIN if info.type is config.Margin else None)
    training = config.TrainConfig()
    if words[:1] == ["train"]:
        training, _ = tyro.cli(start_settings, args=words, return_unknown_args=True, add_help=False)
    train = tyro.conf.subcommand("train", default=Train(tyro.MISSING, tyro.MISSING, training))
    return tyro.cli(
        Sample | Preprocess | Annotated[Train, train] | Predict | Doctor,
        prog="dfdc",
        description="The DFDC 1st-place solution, step by step.",
        args=words,
        config=(tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName),
        registry=registry,
    )


def shorten_error(box: str) -> str:
    """What tyro says of wrong words, in one line: the paragraph below the box's title."""
    lines = (line.strip() for line in box.splitlines()[2:])
    said = " ".join(takewhile(lambda line: line.strip("-"), lines))
    return re.sub(r"^Error parsing (__tyro\S+: )?", "", said).rstrip(".") + " (see --help)"


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. An error that the user can fix is one line."""
    try:
        command = read_command(sys.argv[1:] if argv is None else argv)
        if threading.current_thread() is threading.main_thread():  # clusters end jobs by SIGTERM
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return command()
    except (OSError, ValueError) as error:
        print(f"dfdc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "what is done is kept, and the same command goes on from there"
        print(f"dfdc: stopped; {kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
