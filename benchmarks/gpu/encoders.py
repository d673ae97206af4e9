"""B3 to B7, each trained for a few steps with the slides' settings: a rehearsal, not a result.

From ImageNet's weights where `--pretrained` has them, else from random ones, and the table says so.
So few steps teach hardly anything: what counts is that all five run, and how fast.
"""

import time
from collections.abc import Iterator

from benchmarks.gpu.setting import Setting
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.jobs import count_cores
from dfdc_lib.metrics import auc, log_loss
from dfdc_lib.train import score_videos, train

STEPS = 20


def measure_runs(setting: Setting) -> Iterator[dict]:
    """A line per encoder: how it was trained, how fast, and what held-out videos say."""
    steps, workers = setting.few(STEPS, 2), setting.few(min(count_cores(), 4), 0)
    for encoder in setting.encoders:
        if not setting.has_time(15):
            return
        start = find_weights(setting, encoder)
        settings = {"batch": setting.batch(encoder), "precision": setting.precisions[0]}
        config = TrainConfig(encoder, steps, epoch_steps=steps, **settings)
        times = [time.perf_counter()]

        def note(step: int, total: int, loss: float, times: list = times) -> None:
            times.append(time.perf_counter())

        run = train(setting.work, config, encoder, start, workers, progress=note)
        settled = times[1 + steps // 3 :]  # once the processes that read have started
        rate = config.batch * (len(settled) - 1) / (settled[-1] - settled[0])
        videos = score_videos(run.held_out, "confident")
        line = {"encoder": encoder, "start": "ImageNet" if start else "random", "steps": steps}
        line |= {"batch": config.batch, "pictures/s": rate, "minutes": (times[-1] - times[0]) / 60}
        line |= {"training loss": run.metrics.train_loss.iloc[-1], "held-out videos": len(videos)}
        line["log loss"] = log_loss(videos.label, videos.p_fake)
        yield line | {"AUC": auc(videos.label, videos.p_fake)}


def find_weights(setting: Setting, encoder: str):
    """The folder with pretrained weights if it has this encoder's, else False."""
    folder, name = setting.pretrained, ENCODERS[encoder].timm_name
    return folder if folder and any(folder.glob(f"{name}.*")) else False
