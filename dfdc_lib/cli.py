"""The `dfdc` command: what the notebooks do, for scripts and clusters."""

import argparse
import errno
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dfdc_lib.aggregate import STRATEGIES
from dfdc_lib.config import (
    AUGMENTATION_NAMES,
    BACKENDS,
    DEMO_TRAINING,
    ENCODERS,
    MARGINS,
    MIXED_PRECISIONS,
    PRECISIONS,
    PROCEDURES,
    STAGES,
    THRESHOLDS,
    PredictConfig,
    PreprocessConfig,
    TrainConfig,
    encoder_preset,
)
from dfdc_lib.metadata import read_labels
from dfdc_lib.paths import WorkFolder
from dfdc_lib.progress import progress_bar
from dfdc_lib.tasks import TIME_LIMIT, count_cores
from dfdc_lib.video import printable


def run_sample(args) -> int:
    from dfdc_lib.sample import make_sample

    make_sample(args.out, seed=args.seed, workers=args.workers, progress=progress_bar("original videos filmed"))
    print(f"sample ready in {args.out}")
    return 0


def run_preprocess(args) -> int:
    from dfdc_lib.preprocess import preprocess, warn_of_space

    config = PreprocessConfig(args.every, THRESHOLDS[args.thresholds], args.margin, args.folds)
    work = WorkFolder(args.work) if args.work else WorkFolder.beside(args.data)
    require_writable(work.root)
    if {"crop", "masks"} & set(args.stages) and (warning := warn_of_space(args.data, work, args.originals)):
        print(f"warning: {warning}", file=sys.stderr)
    done = preprocess(
        args.data, work, config, args.workers, args.originals, args.stages, progress_bar("originals"),
        args.scheduler, args.time_limit,
    )  # fmt: skip
    why = {
        "made again": " (settings, files or artifacts had changed)",
        "not ready": " (an earlier stage must run first)",
    }
    for stage, counts in done.actions.groupby(level="stage", observed=True):
        print(f"{stage}: " + "; ".join(f"{n} {action}{why.get(action, '')}" for (_, action), n in counts.items()))
    if done.folds:
        print(f"folds: {done.folds}")
    bad = done.status[done.status.status != "ok"]
    if len(bad):
        print(f"not ok, each with its reason in {work.status}:", file=sys.stderr)
        table = bad.groupby(["stage", "status"]).agg(videos=("video_id", "size"), such_as=("video_id", "first"))
        print(table.reset_index().to_string(index=False), file=sys.stderr)
    actions = set(done.actions.index.get_level_values("action"))
    return 1 if len(bad) or actions - {"kept", "made", "made again"} else 0


def require_writable(folder: Path) -> None:
    """Make a work folder. Raises OSError that names the way out, as data often lies where nobody may write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(f"can't write to {folder} ({error.strerror}): name another folder with --work") from error


def add_workers(command: argparse.ArgumentParser, default: int | None = None, more: str = "") -> None:
    """Where the work is done, and how long one piece of it may take."""
    what = f"processes that do the work; 0: none, it is done unguarded in the command itself{more}"
    command.add_argument("--workers", type=count_of, default=default, help=what)
    command.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="a Dask scheduler's, tcp://…: its workers do the work"
    )
    command.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="that a worker may take for one video's stage",
    )


def count_of(text: str) -> int:
    """A number of things: 0 or more."""
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def parse_margin(text: str) -> float | str:
    """A preset's name or a number."""
    return MARGINS[text] if text in MARGINS else float(text)


def parse_stages(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def run_train(args) -> int:
    from dfdc_lib.train import train

    config = DEMO_TRAINING if args.demo else TrainConfig()
    if args.encoder and not args.demo:
        config = replace(config, encoder=args.encoder, batch=encoder_preset(args.encoder).batch)
    names = ("encoder", "steps", "batch", "accumulate", "size", "fold", "seed", "precision")
    names += ("smoothing", "augmentation", "self_blend")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    run = train(
        WorkFolder(args.work), replace(config, **given), args.run, args.pretrained, args.workers,
        overwrite=args.overwrite, keep_every=args.keep_every, progress=progress_bar("step"),
    )  # fmt: skip
    if not run.finished:
        print(f"stopped after step {len(run.losses)}: the same command goes on from there", file=sys.stderr)
        return 130
    print(f"checkpoint: {run.checkpoint}; validation log loss {run.metrics.valid_loss.iloc[-1]:.3f}")
    return 0


def run_predict(args) -> int:
    from dfdc_lib.predict import REHEARSAL_WARNING
    from dfdc_lib.submission import Judges, check_results, find_videos, judge_videos, match_labels, name_videos

    config = PredictConfig(args.frames, args.strategy, args.procedure or "")
    judges = Judges(tuple(args.checkpoint), config, args.backend, args.precision)
    videos, passed_over = find_videos(args.videos)
    if passed_over:
        kinds = Counter(path.suffix or path.name for path in passed_over).most_common(8)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds)
        print(f"not videos by their names, and passed over: {len(passed_over)} ({told})", file=sys.stderr)
    labels = read_labels(args.labels) if args.labels else {}
    if labels:
        match_labels(videos, labels)
    workers = (0 if len(videos) == 1 else 1) if args.workers is None else args.workers
    if "sample" in judges.check(keep=not (workers or args.scheduler)):
        print(f"warning: {REHEARSAL_WARNING}", file=sys.stderr)
    if args.out:
        check_results(args.out, args.labels)
    names, verdicts = name_videos(videos), []
    pages = name_pages(names, args.report) if args.report else {}
    try:
        for verdict, told in judge_videos(videos, judges, args.out, pages, workers, args.scheduler, args.time_limit):
            verdicts.append(verdict)
            place = f"{len(verdicts)}/{len(videos)} " * (len(videos) > 1)
            print(f"{place}{printable(verdict.video)}: {verdict.status}: {describe(verdict)}", flush=True)
            if told:
                print(told, file=sys.stdout if told.startswith("page: ") else sys.stderr)
    finally:  # what has been judged is written, whatever ended the run
        order = {video: number for number, video in enumerate(videos)}
        verdicts.sort(key=lambda verdict: order[verdict.video])
        if args.out and verdicts:
            write_results(verdicts, names, args)
    tell_scores(verdicts, labels, args.fallback)
    return 0 if all(v.p_fake is not None for v in verdicts) else 1


def tell_scores(verdicts: list, labels: dict[str, int], fallback: float | None) -> None:
    """How many videos have a score, what it means, and, where the truth is known, how good the scores are."""
    from dfdc_lib.metrics import at_base_rate
    from dfdc_lib.submission import judge_verdicts

    n_scored = sum(v.p_fake is not None for v in verdicts)
    print(f"{n_scored} of {len(verdicts)} videos have a score (coverage {n_scored / len(verdicts):.0%})", end="")
    print(f"; the others count as {fallback} in the submission" if fallback is not None else "")
    if n_scored:
        share = f"a calibrated 0.9 means {at_base_rate(0.9, 0.01):.0%}"
        print(f"a score is a model's opinion, never proof: where one video in a hundred is fake, {share}")
    if labels:
        judged = judge_verdicts(verdicts, labels, 0.5 if fallback is None else fallback)
        print(f"log loss {judged['log_loss_scored']:.3f} over the scored, {judged['log_loss_all']:.3f} over all")
        if others := len(labels) - len(verdicts):
            print(f"{others} videos have a label and were not among those given: they count nowhere here")


def write_results(verdicts: list, names: dict[Path, str], args) -> None:
    """Write the submission; of a run that was stopped only where no larger one stands."""
    import pandas as pd

    from dfdc_lib.submission import PREDICTIONS, STATUS, forget_kept, write_verdicts

    status = args.out.parent / STATUS
    complete = len(verdicts) == len(names)
    if not complete and status.exists() and len(pd.read_csv(status)) > len(verdicts):
        print(f"{args.out} stays as it was: it is of more videos than were judged now", file=sys.stderr)
        return
    write_verdicts(verdicts, args.out, args.fallback, names)
    whole = "" if complete else f" of {len(verdicts)} of {len(names)} videos so far"
    print(f"wrote {args.out}{whole}, with {STATUS} and {PREDICTIONS} beside it")
    if complete:
        forget_kept(args.out)


def name_pages(names: dict[Path, str], folder: Path) -> dict[Path, Path]:
    """Where the page about each video goes: one file a video, of a name that a disk takes."""
    plain = {video: name.replace(os.sep, "_") for video, name in names.items()}
    counts = Counter(plain.values())
    return {
        video: folder
        / (f"{name}.html" if counts[name] == 1 and len(name.encode()) <= 150 else f"{name[:60]}_{number}.html")
        for number, (video, name) in enumerate(plain.items())
    }


def describe(verdict) -> str:
    """The score of a judged video, and why it could not be judged, or not in full."""
    if verdict.p_fake is None:
        return verdict.reason
    words = f"p_fake {verdict.p_fake:.3f}, {verdict.n_faces} faces in {verdict.n_frames} frames"
    if len(verdict.people) > 1:
        words += ", by person " + ", ".join(f"{p:.3f}" for p in verdict.people.p_fake)
    return words + f" ({verdict.reason})" * bool(verdict.reason)


def run_doctor(args) -> int:
    from dfdc_lib.doctor import check_checkpoints, check_data, check_environment
    from dfdc_lib.estimate import estimate_run
    from dfdc_lib.integrity import check_work

    if args.estimate and not args.data:
        raise ValueError("an estimate is made from some of your videos: name their folder with --data")
    findings = check_environment() + ([check_data(args.data)] if args.data else [])
    findings += check_work(WorkFolder(args.work), args.data, args.show) if args.work else []
    findings += check_checkpoints(args.checkpoint)
    for finding in findings:
        print(
            f"{'ok ' if finding.ok else 'BAD'} {finding.what}: {finding.found}"
            + (f" ({finding.advice})" * bool(finding.advice))
        )
    if args.estimate:
        table = estimate_run(args.data, args.estimate)
        measured = "{originals} originals and {fakes} fakes".format(**table.attrs)
        print(f"what preprocessing all of {args.data} would take {args.estimate} workers, measured on {measured}")
        print("(together: all stages in one run, which decodes each video once):")
        columns = {"seconds": "seconds a video", "gb": "GB on disk", "memory_gb": "GB of memory"}
        print(table.rename(columns=columns).to_string(index=False, na_rep="", float_format="{:,.2f}".format))
    return 0 if all(f.ok for f in findings) else 1


class ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        none = action.default is None or action.default is False or action.default in ("", [])
        return action.help if none else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a step."""
    parser = argparse.ArgumentParser("dfdc", description="The DFDC 1st-place solution, step by step.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, execute: Callable, text: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text + more, formatter_class=ShowDefaults)
        command.set_defaults(execute=execute)
        return command

    cores = count_cores()
    sample = add("sample", run_sample, "make the mini data set: 64 originals and 128 fakes, all synthetic")
    sample.add_argument("out", type=Path, help="the folder to make")
    sample.add_argument("--seed", type=int, default=0, help="another one makes other videos")
    sample.add_argument("--workers", type=count_of, default=cores, help="processes that film")

    pre = add("preprocess", run_preprocess, "videos to boxes, crops, masks and folds")
    pre.add_argument("data", type=Path, help="the folder that holds dfdc_train_part_0, …")
    pre.add_argument("--work", type=Path, help="where artifacts go (default: work/<name> beside the data)")
    pre.add_argument("--stages", type=parse_stages, default=",".join(STAGES), help="which stages to run, with commas")
    pre.add_argument("--every", type=int, default=PreprocessConfig.every, help="use every n-th frame")
    pre.add_argument("--thresholds", choices=THRESHOLDS, default="train", help="how sure the face detector must be")
    pre.add_argument(
        "--margin", type=parse_margin, default="slides",
        help=f"share of the face box kept around it on each side: a number, or {', '.join(MARGINS)}",
    )  # fmt: skip
    pre.add_argument("--folds", type=int, default=PreprocessConfig.folds, help="at most so many folds")
    pre.add_argument(
        "--originals", type=int, default=0, help="take only so many originals, evenly over the parts; 0: all"
    )
    add_workers(pre, default=cores)

    unless = (
        ". What is not given is as the slides have it (a B5, 75,000 steps, smoothing 0.01, …), but for 32 bits and "
        "random first weights: --precision fp16 --pretrained is theirs."
    )
    tr = add("train", run_train, "train one classifier on all folds but one", unless)
    tr.add_argument("--work", type=Path, required=True, help="a work folder that `dfdc preprocess` made")
    tr.add_argument("--run", required=True, help="the run's name: runs/<name>")
    tr.add_argument("--demo", action="store_true", help="the demo's settings instead of the slides'")
    tr.add_argument("--encoder", help=f"{', '.join(ENCODERS)}, or any name that timm knows")
    tr.add_argument("--steps", type=int, help="in all; the learning rate falls over them")
    tr.add_argument("--batch", type=int, help="pictures a process and step, where it is not to be the encoder's own")
    tr.add_argument("--fold", type=int, help="held out for validation")
    tr.add_argument("--seed", type=int, help="of weights, order and augmentation: what ensembles differ in")
    tr.add_argument("--accumulate", type=int, help="parts that a batch is cut into where memory is short")
    tr.add_argument("--size", type=int, help="side of the input in pixels, where it is not to be the encoder's own")
    tr.add_argument("--precision", choices=MIXED_PRECISIONS, help="mixed precision")
    tr.add_argument("--smoothing", type=float, metavar="EPS", help="labels become EPS and 1 - EPS")
    tr.add_argument(
        "--augmentation",
        choices=AUGMENTATION_NAMES,
        help="hard: the slides', parts of the face blacked out, and a grid, which is ours; upstream: no grid, and its "
        "one way to resize",
    )
    tr.add_argument(
        "--self-blend", type=float, metavar="P", help="with this probability a real crop becomes its own fake"
    )
    tr.add_argument(
        "--pretrained", type=Path, nargs="?", const=True, default=False, metavar="FILE_OR_FOLDER",
        help="start from ImageNet's weights: a file, a folder that holds them, or without a value timm's download",
    )  # fmt: skip
    tr.add_argument("--workers", type=int, default=0, help="processes that read crops")
    tr.add_argument("--keep-every", type=int, default=0, help="keep the weights of every so many epochs; 0: of none")
    tr.add_argument("--overwrite", action="store_true", help="replace a run of this name that has other settings")

    pred = add("predict", run_predict, "score videos: is it a fake?")
    pred.add_argument("videos", nargs="+", type=Path, metavar="VIDEO_OR_FOLDER", help="folders at any depth")
    pred.add_argument(
        "--checkpoint", nargs="+", type=Path, required=True, metavar="FILE", help="of several the scores are averaged"
    )
    pred.add_argument("--frames", type=int, default=PredictConfig.frames, help="looked at, spread over the video")
    pred.add_argument(
        "--strategy", choices=STRATEGIES, default=PredictConfig.strategy, help="how the faces' scores are joined"
    )
    pred.add_argument(
        "--procedure", choices=PROCEDURES,
        help="how faces are found and cut: as the slides say, or as upstream's code does; default: as the checkpoint "
        "wants it, which for upstream's released files is the latter",
    )  # fmt: skip
    pred.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes the scores")
    pred.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the scores' arithmetic")
    add_workers(pred, more=" (default: 1 for several videos, else 0)")
    pred.add_argument("--out", type=Path, help="write a submission here, status.csv and predictions.parquet beside it")
    pred.add_argument("--fallback", type=float, help="the submission's score of videos that could not be judged")
    pred.add_argument("--labels", type=Path, help="the truth: a data folder, or a CSV with filename,label")
    pred.add_argument("--report", type=Path, metavar="FOLDER", help="write a page about each video here")

    doc = add("doctor", run_doctor, "what works here, what does not, what to do")
    doc.add_argument("--data", type=Path, help="the folder that holds dfdc_train_part_0, …: is it all there?")
    doc.add_argument("--work", type=Path, help="a work folder: is all there and whole?")
    doc.add_argument("--show", type=count_of, default=3, help="how many names to give of what is wrong there")
    doc.add_argument(
        "--estimate", type=count_of, default=0, metavar="WORKERS",
        help="preprocess a few of the videos of --data, and say what all of them will take so many workers",
    )  # fmt: skip
    doc.add_argument(
        "--checkpoint", nargs="*", type=Path, default=[], metavar="FILE_OR_FOLDER",
        help="do the libraries build its network, does it load, which bytes is it, can it tell real from fake?",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. An error the user can mend is one line, not a traceback."""
    args = build_parser().parse_args(argv)
    try:
        with _terminate_as_interrupt():
            return args.execute(args)
    except (OSError, ValueError) as error:
        print(f"dfdc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dfdc: stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, by which clusters end a job, stops a command as Ctrl-C does: tidily. (Of the main thread only.)"""

    def stop(number, frame) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
