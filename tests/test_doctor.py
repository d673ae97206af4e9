"""The doctor of checkpoints: what it says of networks whose condition is known."""

from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from test_predict import make_model
from test_weights import NAME, release
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.ops import doctor
from dfdc_lib.ops.cli import main
from dfdc_lib.store import digest_file


def pad_alike(layer, x):
    """The same convolution, padded alike on all sides; TensorFlow pads the far sides more."""
    padding = [side // 2 for side in layer.kernel_size]
    return F.conv2d(x, layer.weight, None, layer.stride, padding, groups=layer.groups)


def shrink_epsilon(*given, batch_norm=F.batch_norm):
    """PyTorch's own; TensorFlow's networks have 1e-3."""
    return batch_norm(*given[:-1], 1e-5)


def squeeze_by_maximum(block, x):
    squeezed = x.amax((2, 3), keepdim=True)
    return x * block.gate(block.conv_expand(block.act1(block.conv_reduce(squeezed))))


MUTATIONS = {
    "activation": (nn.SiLU, "forward", lambda layer, x: x.relu()),
    "padding": (timm.layers.Conv2dSame, "forward", pad_alike),
    "unknown": (timm, "create_model", Mock(side_effect=RuntimeError("Unknown model"))),
    "squeeze": (SqueezeExcite, "forward", squeeze_by_maximum),
    "epsilon": (F, "batch_norm", shrink_epsilon),
}


@pytest.mark.parametrize("encoder", ["b3", pytest.param("b7", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutation", ["", *MUTATIONS])
def test_a_library_that_builds_another_network_is_found_out(encoder, mutation, monkeypatch):
    if mutation:
        monkeypatch.setattr(*MUTATIONS[mutation])
    finding = doctor.check_network(encoder)
    assert finding.ok == (not mutation), finding
    assert finding.advice.startswith("not upstream's network" if mutation else "")
    assert timm.__version__ in finding.what


def make_network(trained_on="mine", formula=True) -> DeepfakeClassifier:
    """With weights from the formula it is sure of answers that mean nothing."""
    model = make_model(trained_on=trained_on)
    if formula:
        model.load_state_dict(doctor.formula_weights(model))
    return model


LABELS = np.arange(12) % 2
NOISE = np.random.default_rng(0).uniform(-1, 1, 12)


@pytest.mark.parametrize(
    ("logits", "knows", "fault"),
    [
        (4 * LABELS - 2 + NOISE, True, ""),
        (2 - 4 * LABELS + NOISE, True, "can't tell them"),
        (2 - 4 * LABELS + NOISE, False, ""),
        (3 + 0.01 * NOISE, False, "one answer"),
        (np.full(12, np.nan), False, "not finite"),
        (np.r_[np.inf, np.zeros(11)], False, "not finite"),
    ],
)
def test_what_is_wrong_with_answers_is_named(logits, knows, fault):
    said = doctor.name_fault(logits, LABELS, knows)
    assert fault in said
    assert bool(fault) == bool(said)


@pytest.mark.parametrize("factor", [1, -1])
def test_a_network_that_knows_the_sample_is_well_and_its_opposite_is_not(factor):
    """Its last layer is fitted to the known crops."""
    model = make_network("sample")
    crops, labels = doctor.known_crops(model.card.margin)
    assert labels.tolist() == [0, 1] * 8
    for real, fake in zip(crops[::2], crops[1::2], strict=True):
        assert 0.02 < (real != fake).any(axis=2).mean() < 0.9
    transform = doctor.valid_transforms(model.card.size)
    with torch.no_grad():
        pictures = torch.stack([transform(image=crop)["image"] for crop in crops])
        pooled = model.encoder.forward_features(pictures).mean(dim=(2, 3)).double()
        centre = pooled.mean(dim=0)
        direction = torch.linalg.pinv(pooled - centre) @ torch.from_numpy(6.0 * labels - 3)
        model.fc.weight.copy_(factor * direction[None])
        model.fc.bias.copy_(-factor * (centre @ direction))
    assert doctor.check_scores(model, "m.pt").ok == (factor == 1)


def test_an_untrained_network_is_called_so_and_one_of_other_data_is_not_blamed():
    untrained = doctor.check_scores(make_network(formula=False), "m.pt")
    assert (untrained.ok, "untrained" in untrained.advice) == (False, True)
    other = doctor.check_scores(make_network(), "m.pt")
    assert (other.ok, "learned from other data" in other.advice) == (True, True)


def test_a_file_is_known_by_its_bytes_and_what_does_not_load_is_told(tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    save_checkpoint(path, make_network())
    release(monkeypatch, path.read_bytes())
    loaded, _ = doctor.check_checkpoint(path)
    assert loaded.ok
    assert f"sha256 {digest_file(path)}, as upstream released {NAME}" in loaded.found
    path = tmp_path / NAME
    (missing,) = doctor.check_checkpoint(path)
    torch.save({"state_dict": {"module.fc.weight": torch.zeros(1, 2560)}}, path)
    (altered,) = doctor.check_checkpoint(path)
    release(monkeypatch, path.read_bytes())
    (genuine,) = doctor.check_checkpoint(path)
    for finding, found, advice in (
        (missing, "no such checkpoint", "take one from release 0.0.1"),
        (altered, "does not fit", "not what upstream released under this name"),
        (genuine, "does not fit", "the libraries do not build its network"),
    ):
        assert not finding.ok
        assert found in finding.found
        assert advice in finding.advice


def test_the_libraries_and_the_files_of_a_folder_are_told(tmp_path, monkeypatch, capsys):
    known = doctor.Finding("the network", True, "")
    monkeypatch.setattr(doctor, "check_network", lambda encoder: known)
    (tmp_path / "weights").mkdir()
    save_checkpoint(tmp_path / "weights" / NAME, make_network())
    (tmp_path / "notes.txt").touch()
    assert main(["doctor", "--checkpoint", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 7 by name (`dfdc weights` downloads them)" in printed
    (bad,) = (line for line in printed.splitlines() if line.startswith("BAD"))
    assert NAME in bad
    assert printed.count("the network") == 2  # B3 and B7


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),
        ((6, 0), ["sm_75", "sm_80", "sm_90"], False),  # a P100
        ((7, 0), ["sm_75", "compute_75"], False),  # a V100
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_told(monkeypatch, capability, built, fits):
    stand_in = {"is_available": True, "get_device_capability": capability, "get_arch_list": built}
    stand_in |= {"get_device_name": "a card", "is_bf16_supported": capability >= (8, 0)}
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    finding = doctor.check_gpu()
    assert finding.ok == fits
    assert ("not bf16" in finding.found) == (capability < (8, 0))
    assert fits or ", ".join(built) in finding.advice
