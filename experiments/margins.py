"""Margin against artifact: which margin shows which family best? Writes experiments/margins.csv
(25 minutes on two cores).

    python -m experiments.margins

The real faces of a sample on which nothing was tuned are cut with a margin of 100 %. Each is made
into a fake four times, once by each family of notebook 11, at a random strength; the face and its
fakes then pass through one JPEG of the same quality. The crops of every margin are cut from these
pictures: the fakes are the same, only the view differs.

For each margin and seed (seed i holds out part i), a pretrained Lite0 is trained on all four
families, in two arms. "input": the network's input stays 128 pixels wide, so that a larger margin
shows a smaller face. "face": the input grows with the margin, so that the face keeps its size. One
line per arm, margin and family: the AUC of its held-out crops against the real ones, mean of the
seeds, and its difference from the AUC at 20 %; 95 % intervals by bootstrap over originals.
"""

import argparse
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.blending import NotAFace, eyes_to_mouth, face_frame
from dfdc_lib.config import DEMO_TRAINING, Margin, PreprocessConfig
from dfdc_lib.dataset import read_faces, read_folds
from dfdc_lib.geometry import add_margin, crop_box
from dfdc_lib.ops.pipeline import FOLD_COLUMNS, PLACE_COLUMNS, preprocess
from dfdc_lib.progress import require
from dfdc_lib.rehearsal.forensics import recompress
from dfdc_lib.rehearsal.manipulate import (
    blending_artifact,
    encoding_difference,
    visual_defect,
    warping_artifact,
)
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder, face_file, read_png, write_json, write_png
from experiments.intervals import compare_auc
from experiments.training import LEARNED, LEARNED_SEED, Job, describe_run, train_all

TABLE = Path(__file__).with_suffix(".csv")
MARGINS = (0.0, 0.1, 0.2, 0.33, 0.5, 1.0)
# family → the range its strength is drawn from, so that a detector at 20 % is neither blind nor
# perfect. Chosen on the demo's sample; the table comes from another.
FAMILIES = {
    "visual": (0.2, 0.6),
    "encoding": (0.9, 1.0),
    "warping": (0.05, 0.25),
    "blending": (0.2, 0.8),
}
# arm → its margins. (At 100 % the frame cuts off most crops: no input keeps the face's size.)
ARMS = {"input": MARGINS, "face": MARGINS[:-1]}
SEEDS = 3  # detectors per margin: number i has seed i and holds out part i
WIDE = PreprocessConfig(margin=Margin(1.0), every=12)


class Face(NamedTuple):
    """A real face, cut with a margin of 100 %; box and landmarks in pixels of the picture."""

    row: pd.Series  # its line in folds.csv
    picture: np.ndarray
    box: np.ndarray  # (4,)
    landmarks: np.ndarray


def gather_faces(data: Path, work: WorkFolder, originals: int) -> list[Face]:
    """The first person of each original at every 12th frame, if the whole face is visible."""
    preprocess(data, work, WIDE, os.cpu_count() or 1, originals, stages=("detect", "crop", "folds"))
    rows, faces = read_folds(work), []
    rows = rows[(rows.label == 0) & (rows.face_idx == 0)]
    for original_id, crops in rows.groupby("original_id"):
        found = read_faces(work, original_id)  # in pixels of the frame
        for _, row in crops.iterrows():
            picture = read_png(work.crops(original_id) / face_file(row.frame_idx, row.face_idx))
            (box, landmarks), corner = found[row.frame_idx, row.face_idx], [row.x0, row.y0]
            face = Face(row, picture, box - np.tile(corner, 2), landmarks - corner)
            faces += [face] if is_whole(face) else []
    return faces


def is_whole(face: Face) -> bool:
    """Can this face be manipulated?"""
    try:
        face_frame(face.landmarks, *face.picture.shape[:2])
    except NotAFace:
        return False
    return True


def nearest_donor(face: Face, faces: list[Face]) -> Face:
    """As in Face X-ray: the most similar landmarks in another original of the same part."""

    def shape(other: Face) -> np.ndarray:
        return (other.landmarks - other.landmarks.mean(axis=0)) / eyes_to_mouth(other.landmarks)

    others = [
        f
        for f in faces
        if f.row.part == face.row.part and f.row.original_id != face.row.original_id
    ]
    require(
        others,
        f"a face is blended with another original's, and part {face.row.part} has only one",
    )
    return min(others, key=lambda other: np.abs(shape(other) - shape(face)).sum())


def falsify(face: Face, family: str, faces: list[Face], rng: np.random.Generator) -> np.ndarray:
    """Make the face a fake of one family."""
    given, strength = (face.picture, face.landmarks), rng.uniform(*FAMILIES[family])
    if family == "blending":
        donor = nearest_donor(face, faces)
        return blending_artifact(*given, donor.picture, donor.landmarks, rng, strength)[0]
    make = {"visual": visual_defect, "encoding": encoding_difference, "warping": warping_artifact}[
        family
    ]
    return make(*given, rng, strength)[0]


def make_pictures(faces: list[Face]) -> Iterator[tuple[Face, str, np.ndarray]]:
    """Each face as it is ("real") and as a fake of each family, saved as JPEG of one quality."""
    for number, face in enumerate(faces):
        quality = int(np.random.default_rng([number, len(FAMILIES)]).integers(85, 96))
        yield face, "real", recompress(face.picture, quality)
        for family_number, family in enumerate(FAMILIES):
            rng = np.random.default_rng([number, family_number])
            yield face, family, recompress(falsify(face, family, faces, rng), quality)


def cut_crops(
    pictures: list[tuple[Face, str, np.ndarray]], margin: float, work: WorkFolder, recipe: dict
) -> None:
    """Write the crops of one margin, and what training reads beside them.

    Runs on crops of another recipe are removed.
    """
    recipe = recipe | {"settings": recipe["settings"] | {"margin": str(Margin(margin))}}
    if work.root.exists() and (not work.recipe.exists() or work.read_recipe() != recipe):
        shutil.rmtree(work.root)
    lines = []
    for face, family, picture in pictures:
        height, width = picture.shape[:2]
        video_id = face.row.original_id if family == "real" else f"{face.row.original_id}-{family}"
        path = work.crops(video_id) / face_file(face.row.frame_idx, face.row.face_idx)
        path.parent.mkdir(parents=True, exist_ok=True)
        place = add_margin(face.box, Margin(margin), width, height)
        write_png(path, crop_box(picture, place))
        line = face.row.to_dict() | dict(zip(PLACE_COLUMNS, place, strict=True))
        lines.append(line | {"video_id": video_id, "label": int(family != "real")})
    write_json(work.recipe, recipe)
    table = pd.DataFrame(lines).assign(file="")  # nothing reads the paths
    table[FOLD_COLUMNS + PLACE_COLUMNS].to_csv(work.folds, index=False)


def input_size(arm: str, margin: float) -> int:
    """The side of the network's input: that for 20 %, or so that the face keeps its size there."""
    size = DEMO_TRAINING.size
    return size if arm == "input" else 8 * round(size * (1 + 2 * margin) / 1.4 / 8)


def train_arm(
    arm: str, works: dict[float, WorkFolder], seeds: int, steps: int
) -> dict[float, pd.DataFrame]:
    """Train the detectors of one arm: margin → the held-out crops of all seeds, with p_fake."""
    jobs = {}
    for margin, seed in product((m for m in works if m in ARMS[arm]), range(seeds)):
        size = input_size(arm, margin)
        settings = replace(DEMO_TRAINING, size=size, fold=seed, seed=seed)
        settings = replace(settings, steps=steps, epoch_steps=steps)
        jobs[margin, seed] = Job(works[margin], f"margin_{margin}_size_{size}_{seed}", settings)
    scored, views = train_all(list(jobs.values())), defaultdict(list)
    for (margin, seed), job in jobs.items():
        crops = scored[job.name]
        family = crops.video_id.str.partition("-")[2].replace("", "real")
        views[margin].append(crops.assign(family=family, seed=seed))
    return {margin: pd.concat(tables) for margin, tables in views.items()}


def summarise(views: dict[float, pd.DataFrame]) -> Iterator[dict]:
    """The lines of one arm: AUC of each margin and family, and how far it is from that of 20 %.

    views: margin → crops.
    """
    key = ["original_id", "frame_idx", "family", "label", "seed"]
    columns = [crops.set_index(key).p_fake.rename(str(margin)) for margin, crops in views.items()]
    joined = pd.concat(columns, axis=1, join="inner").reset_index()
    for family in FAMILIES:
        rows = joined[joined.family.isin(["real", family])]
        for margin in views:
            found = compare_auc(rows, str(margin))
            line = {"margin": margin, "family": family, "auc": found["value"]}
            line |= {
                "low": found["low"],
                "high": found["high"],
                "originals": rows.original_id.nunique(),
                "crops": len(rows),
            }
            yield line | (compare_to_slides(rows, margin) if 0.2 in views else {})


def compare_to_slides(rows: pd.DataFrame, margin: float) -> dict:
    """By how much AUC at this margin exceeds that at 20 %."""
    if margin == 0.2:
        return {}
    return {
        f"against_20_{name}": value for name, value in compare_auc(rows, str(margin), "0.2").items()
    }


def main() -> None:
    """Train everything, or resume; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="use this data set, not the one made for this (needs --out)"
    )
    parser.add_argument(
        "--work", type=Path, help="crops and detectors go beside it (default: as in preprocessing)"
    )
    parser.add_argument(
        "--originals", type=int, default=0, help="use only this many, evenly over the parts (--out)"
    )
    parser.add_argument(
        "--margins", type=float, nargs="+", default=MARGINS, help="only these (--out)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="detectors per margin (--out)")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="only these (--out)"
    )
    parser.add_argument(
        "--steps", type=int, default=DEMO_TRAINING.steps, help="of training (--out)"
    )
    parser.add_argument("--out", type=Path, help="write here instead of beside this script")
    args = parser.parse_args()
    part = {name for name, value in vars(args).items() if value != parser.get_default(name)} - {
        "out",
        "work",
    }
    if part and not args.out:
        parser.error(
            f"with {', '.join(sorted(part))} this is another experiment: name its table with --out"
        )
    data = args.data or make_sample(LEARNED, seed=LEARNED_SEED, workers=os.cpu_count() or 1)
    home = args.work or WorkFolder.beside(data).root
    wide = WorkFolder(home.with_name(f"{home.name}-wide"))
    faces = gather_faces(data, wide, args.originals)
    require(faces, "no original shows a whole face")
    pictures, lines = list(make_pictures(faces)), []
    works = {
        margin: WorkFolder(home.with_name(f"{home.name}-families-{margin}"))
        for margin in args.margins
    }
    digest = hashlib.sha256(b"".join(picture.tobytes() for _, _, picture in pictures)).hexdigest()
    recipe = wide.read_recipe() | {"pictures": digest}
    for margin, work in works.items():
        cut_crops(pictures, margin, work, recipe)
    for arm in args.arms:
        views = train_arm(arm, works, args.seeds, args.steps)
        about = {"arm": arm, "seeds": args.seeds, "steps": args.steps}
        lines += [
            about | {"input": input_size(arm, line["margin"])} | line for line in summarise(views)
        ]
    pd.DataFrame(lines).assign(**describe_run()).to_csv(
        args.out or TABLE, index=False, float_format="%.3f"
    )


if __name__ == "__main__":
    main()
