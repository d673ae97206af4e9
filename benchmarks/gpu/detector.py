"""How many frames a second the detector sees on a card, against facenet-pytorch's own there."""

from collections.abc import Iterator

from benchmarks import detect
from benchmarks.gpu.setting import Setting


def measure_detector(setting: Setting) -> Iterator[dict]:
    """The lines of `benchmarks.detect`, on the card."""
    frames = setting.read_frames()
    yield from (name_columns(row) for row in detect.run(setting.few(2, 1), frames))


def name_columns(row: dict) -> dict:
    """Ratios of frames a second."""
    n = row["frames"]
    line = {"detector": row["ours"], "against": row["peer"], "frames/s": n / row["ours_s"]}
    return line | {"the peer's": n / row["peer_s"], "times as fast": row["ratio"]}
