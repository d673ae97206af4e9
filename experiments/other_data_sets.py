"""Why is a detector that is right on its own data wrong on others? Writes
experiments/other_data_sets.csv (half an hour on two cores).

    python -m experiments.other_data_sets

Two sets of videos, "a" and "b", differ in people, framing, codec and methods. Three Lite0 learn
each, and three learn a's scenes with b's methods, all with the demo's settings. They score videos
that no network has seen: from set a, from set a with one thing as in b, and from set b. A line of
the table is one network's score for one video; notebook 13 and the site make a generalisation card.

    python -m experiments.other_data_sets --film b --originals 8 --out FOLDER

films a set of that kind and does nothing else.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.dataset import CropReader, read_folds
from dfdc_lib.jobs import Lost, count_cores, run_jobs
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.film import Shot
from dfdc_lib.rehearsal.sample import VERSION, Fake, film_all, read_methods
from dfdc_lib.store import WorkFolder, write_text
from dfdc_lib.train import score_held_out, score_videos, train
from experiments.training import describe_run

TABLE = Path(__file__).with_suffix(".csv")
FOLDER = Path("data/other")
SEEDS = 3
LEARN_SEED, TEST_SEED, FILM_SEED = 20, 30, 40  # seeds of the first set of each kind
N_LEARNED, N_TESTED = 48, 32  # originals, each with two fakes


@dataclass(frozen=True)
class Kind:
    """What a data set's makers chose."""

    people: tuple[str, ...] = ("collins", "collins-hopper")
    sizes: tuple[tuple[int, int], ...] = ((480, 270), (400, 300), (480, 360), (640, 360))
    codecs: tuple[str, ...] = ("h264",)
    crf: tuple[int, int] = (20, 28)
    methods: tuple[str, str] = ("swap", "autoencoder")


A = Kind()
B = Kind(
    people=("hopper", "hopper-collins"),
    sizes=((1280, 720), (960, 540), (720, 1280), (1024, 576)),
    codecs=("vp9", "hevc"),
    crf=(30, 36),
    methods=("mouth", "rewarp"),
)
LEARNED = {"a": A, "b": B, "a, other methods": replace(A, methods=B.methods)}
TESTED = {
    "a": A,
    "a, other people": replace(A, people=B.people),
    "a, other framing": replace(A, sizes=B.sizes),
    "a, other codec": replace(A, codecs=B.codecs, crf=B.crf),
    "a, other methods": replace(A, methods=B.methods),
    "b": B,
}


def plan_kind(kind: Kind, n_originals: int, seed: int) -> list[tuple[int, Shot, list[Fake]]]:
    """Lay out a data set of a kind as `sample.plan` does: four parts, two fakes per original."""
    rng, groups = np.random.default_rng(seed), []

    def draw_crf() -> int:
        return int(rng.integers(kind.crf[0], kind.crf[1], endpoint=True))

    for number in range(n_originals):
        width, height = kind.sizes[number // len(kind.people) % len(kind.sizes)]
        shot = Shot(
            seed=int(rng.integers(2**31)),
            identities=(kind.people[number % len(kind.people)],),
            width=width,
            height=height,
            n_frames=33,
            crf=draw_crf(),
            camera_crf=int(rng.integers(12, 24)),
            codec=str(rng.choice(kind.codecs)),
            noise=round(max(rng.uniform(-3, 3), 0), 1),
        )
        fakes = [
            Fake(int(rng.integers(2**31)), method, rng.uniform(0, 1), draw_crf())
            for method in kind.methods
        ]
        groups.append((4 * number // n_originals, shot, fakes))
    return groups


def make_set(
    name: str, kind: Kind, n_originals: int, seed: int, folder: Path | None = None
) -> Path:
    """Film a data set, or keep it; by default, in FOLDER."""
    folder = folder or FOLDER / name.replace(", ", "-").replace(" ", "-")
    settings = {"version": VERSION, "seed": seed, "plan": f"experiments.other_data_sets {name}"}
    return film_all(folder, plan_kind(kind, n_originals, seed), settings, count_cores())


class Job(NamedTuple):
    """One network to train, and the data sets that it scores, by name."""

    learned: str
    seed: int
    work: WorkFolder
    tested: dict[str, Path]


def train_and_score(job: Job) -> pd.DataFrame:
    """Train a network, or resume; return a line per video."""
    config, tables = replace(DEMO_TRAINING, seed=job.seed), []
    name = f"lite0_{job.seed}"
    run = train(job.work, config, name, pretrained=True).require_finished()
    for tested_on, data in job.tested.items():
        work = WorkFolder.beside(data)
        reader = CropReader(work, config.input_size)
        videos = score_videos(score_held_out(run.model, read_folds(work), reader))
        method = videos.video_id.map(read_methods(data)).fillna("")
        tables.append(videos.assign(tested_on=tested_on, method=method))
    return pd.concat(tables).assign(trained_on=job.learned, seed=job.seed)


def main() -> None:
    """Film and train everything, or resume; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--film", choices=LEARNED, help="only film a set of this kind")
    parser.add_argument("--originals", type=int, default=8, help="how many that set has")
    parser.add_argument("--out", type=Path, help="where that set goes")
    asked = parser.parse_args()
    if asked.film:
        name = f"{asked.film}, {asked.originals} originals"
        make_set(name, LEARNED[asked.film], asked.originals, FILM_SEED, asked.out)
        return
    cores = count_cores()
    learned = {
        n: make_set(f"{n}, learned", k, N_LEARNED, LEARN_SEED + i)
        for i, (n, k) in enumerate(LEARNED.items())
    }
    tested = {n: make_set(n, k, N_TESTED, TEST_SEED + i) for i, (n, k) in enumerate(TESTED.items())}
    for data in (*learned.values(), *tested.values()):
        preprocess(data, WorkFolder.beside(data), workers=cores)
    jobs = [
        (Job(name, seed, WorkFolder.beside(data), tested),)
        for seed in range(SEEDS)
        for name, data in learned.items()
    ]
    tables = []
    for (job,), table in run_jobs(train_and_score, jobs, cores, time_limit=7200):
        if isinstance(table, Lost):
            raise OSError(f"{job.learned} {job.seed}: {table.reason}")
        tables.append(table)
        print(f"{len(tables)} of {len(jobs)}: {job.learned} {job.seed}", flush=True)
    order = ["trained_on", "seed", "tested_on", "method", "original_id", "video_id"]
    table = pd.concat(tables).sort_values(order)
    head = "# " + "; ".join(describe_run().values()) + "\n"
    columns = [*order, "label", "p_fake"]
    write_text(TABLE, head + table[columns].to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
