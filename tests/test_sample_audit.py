"""Nothing that must not tell a fake of the sample does; an encoder learns what may."""

from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import auc
from dfdc_lib.rehearsal.sample import METHODS, make_sample, read_methods
from dfdc_lib.video import iterate_frames
from experiments.sample_audit import TABLE, predict_across_parts


def test_the_committed_table_keeps_its_promises():
    table = pd.read_csv(TABLE).set_index("check")
    assert table.seconds_to_train.max() <= 90
    learned = [name for name in table.index if name.startswith(("whole", "…"))]
    for name, line in table.drop(learned).iterrows():
        assert line.auc_low <= 0.5 <= line.auc_high, name
    whole = table.loc["whole crop, lite0"]
    assert 0.85 <= whole.auc <= 0.95  # learnable, and not solved
    assert whole.log_loss < 0.6
    methods = table[table.index.str.startswith("…")].auc
    assert methods.max() - methods.min() > 0.1
    assert whole.auc_low > table.loc["face blanked, lite0"].auc_high
    assert len(learned) == 5


def look(path: Path) -> tuple[dict, dict[str, float]]:
    """What an original and its fakes should share; and numbers that should tell no label."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        sizes = [packet.size for packet in container.demux(stream) if packet.size]
        names = ("name", "profile", "pix_fmt", "width", "height")
        coded = {name: getattr(stream.codec_context, name) for name in names}
        coded |= {"rate": stream.average_rate, "tick": stream.time_base, "packets": len(sizes)}
        coded |= {"tags": sorted((container.metadata | stream.metadata).items())}
    _, frame = next(iterate_frames(path, [0]))
    border = frame[: len(frame) // 8]
    edges = cv2.Laplacian(cv2.cvtColor(border, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
    return coded, {
        "file size": path.stat().st_size,
        "first packet": sizes[0],
        "later packets by the first": sum(sizes[1:]) / sizes[0],
        "brightness": frame.mean(),
        "brightness of the border": border.mean(),
        "sharpness of the border": edges.std(),
    }


@pytest.mark.slow
def test_no_shortcut_tells_a_fake(tmp_path):
    """Neither over all videos, nor against its own original, nor together, over other parts."""
    data = make_sample(tmp_path / "sample", originals_per_part=8, n_frames=3)
    videos = read_metadata(data)
    coded, numbers = zip(*(look(data / file) for file in videos.file), strict=True)
    rows = pd.Series(videos.index, videos.video_id)
    own = rows[videos.original_id].to_numpy()  # the row of each one's original
    assert all(coded[row] == coded[original] for row, original in enumerate(own))
    numbers, fake = pd.DataFrame(numbers), videos.label == 1
    for name, values in numbers.items():
        above = np.sign(values.to_numpy() - values.to_numpy()[own])[fake]
        assert abs(above.mean()) < 0.4, f"{name}: most fakes differ in one direction"
        assert abs(auc(videos.label, values.rank(pct=True)) - 0.5) < 0.1, name
    assert auc(videos.label, predict_across_parts(np.log(numbers), videos).p_fake) < 0.6


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one_and_these_are_few(tmp_path):
    one, two = (make_sample(tmp_path / str(n), 2, 2, 6, workers=n) for n in (0, 2))
    files = sorted(path.relative_to(one) for path in one.rglob("*.mp4"))
    assert len(files) == 12
    assert set(read_methods(one).values()) == set(METHODS)
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert sum((one / file).stat().st_size for file in files) < 12e6
