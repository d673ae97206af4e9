"""The table of what training each encoder costs."""

import os

import pandas as pd
import pytest
import torch

from benchmarks import encoders
from benchmarks.train_step import make_loop
from dfdc_lib.config import TrainConfig
from dfdc_lib.ops.cost import cost_of


def test_a_batch_goes_through_in_as_few_parts_as_fit():
    kept = cost_of("tiny").kept_bytes
    for pictures, parts in ((8, 1), (4, 1), (3, 2), (1, 4), (0.5, 4)):
        line = encoders.measure_encoder("tiny", 4, pictures * kept * 1.01 / 1e9, seconds=0)
        assert (line["parts"], line["steps"]) == (parts, 1)
    assert line["low_s"] == line["step_s"] == line["high_s"] > 0
    assert line["parameters"] == cost_of("tiny").parameters


def test_the_warm_up_leaves_the_loop_as_it_was(tmp_path):
    loop = make_loop(TrainConfig(encoder="tiny", batch=4, accumulate=2), tmp_path)
    config, given = loop.config, loop.given
    seen: list[torch.Size] = []
    loop.model.register_forward_pre_hook(lambda _, pictures: seen.append(pictures[0].shape))
    encoders.warm_up(loop)
    assert [shape[0] for shape in seen] == [2]
    assert loop.config is config
    assert loop.given is given


def test_it_measures_until_the_steps_are_alike(monkeypatch):
    def measured(*seconds: float) -> list[float]:
        monkeypatch.setattr(encoders, "time_call", lambda _, turns=iter(seconds): next(turns))
        return encoders.repeat_until(print, until=float("inf"))

    assert measured(9, 1, 1.01, 1.02) == [9, 1, 1.01, 1.02]
    assert measured(1, 2, 1, 2, 1) == [1, 2, 1, 2, 1]  # no more than MOST_STEPS
    monkeypatch.setattr(encoders, "time_call", lambda _: 5.0)
    assert encoders.repeat_until(print, until=0) == [5.0]


def test_a_line_replaces_its_encoders_old_one(tmp_path):
    for encoder, seconds in (("b7", 20.0), ("lite0", 2.0), ("b3", 7.0), ("b7", 19.0)):
        encoders.write_line(tmp_path / "t.csv", {"encoder": encoder, "step_s": seconds})
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.encoder.tolist() == ["lite0", "b3", "b7"]  # in the order of ENCODERS
    assert table.step_s.tolist() == [2.0, 7.0, 19.0]


def test_an_encoder_whose_process_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(encoders, "measure_encoder", os._exit)  # dies of whatever it is given
    with pytest.raises(MemoryError, match="the process of 7 was killed, .*: give a smaller"):
        encoders.measure_alone(7)
