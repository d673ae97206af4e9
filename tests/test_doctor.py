"""The doctor of checkpoints: what it says of networks whose condition is known."""

import hashlib

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from dfdc_lib.config import MARGINS
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint, score
from dfdc_lib.ops import doctor
from dfdc_lib.ops.cli import main

RELEASED_NAME = "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"


def pad_alike(layer, x):
    """The same convolution, padded alike on all sides; TensorFlow pads the far sides more."""
    padding = [side // 2 for side in layer.kernel_size]
    return F.conv2d(x, layer.weight, None, layer.stride, padding, groups=layer.groups)


def pool_by_maximum(model, crops):
    return model.fc(model.encoder.forward_features(crops).amax((2, 3))).squeeze(1)


def shrink_epsilon(*given, batch_norm=F.batch_norm):
    """PyTorch's own; TensorFlow's networks have 1e-3."""
    return batch_norm(*given[:-1], 1e-5)


def squeeze_by_maximum(block, x):
    squeezed = x.amax((2, 3), keepdim=True)
    return x * block.gate(block.conv_expand(block.act1(block.conv_reduce(squeezed))))


MUTATIONS = {
    "activation": (nn.SiLU, "forward", lambda layer, x: x.relu()),
    "padding": (timm.layers.Conv2dSame, "forward", pad_alike),
    "pooling": (DeepfakeClassifier, "forward", pool_by_maximum),
    "squeeze": (SqueezeExcite, "forward", squeeze_by_maximum),
    "epsilon": (F, "batch_norm", shrink_epsilon),
}
ENCODERS = ["b3", pytest.param("b7", marks=pytest.mark.slow)]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_libraries_build_the_network_that_gives_the_golden_answers(encoder):
    finding = doctor.check_network(encoder)
    assert finding.ok, finding
    assert timm.__version__ in finding.what
    assert np.ptp(doctor.GOLDEN[encoder]) > 0.5


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_library_that_builds_another_network_is_found_out(encoder, mutation, monkeypatch):
    monkeypatch.setattr(*MUTATIONS[mutation])
    finding = doctor.check_network(encoder)
    assert not finding.ok
    assert "not upstream's network" in finding.advice


def refuse(name):
    raise RuntimeError(f"Unknown model ({name})")


def test_what_does_not_know_the_network_is_found_out_and_other_portraits_blame_none(monkeypatch):
    honest = doctor.portrait
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "DeepfakeClassifier", refuse)
        finding = doctor.check_network("b3")
        assert (finding.ok, "Unknown model" in finding.found) == (False, True)
    monkeypatch.setattr(doctor, "portrait", lambda person: honest(person) ^ 1)
    finding = doctor.check_network("b3")
    assert (finding.ok, "can't be told" in finding.found) == (True, True)


def test_formula_weights_give_scores_that_spread_like_a_trained_networks():
    model = DeepfakeClassifier("b3").eval()
    model.load_state_dict(doctor.formula_weights(model))
    assert model.encoder.bn1.num_batches_tracked == 0
    # The same numbers on every machine, to the bit.
    weights = [tensor.numpy().tobytes() for _, tensor in sorted(model.state_dict().items())]
    assert hashlib.sha256(b"".join(weights)).hexdigest()[:16] == "9292374775325b2a"
    transform = doctor.valid_transforms(model.card.size)
    crops = doctor.known_crops(MARGINS["slides"])[0][::2]
    scores = score(model, torch.stack([transform(image=crop)["image"] for crop in crops]))
    assert scores.min() < 0.3
    assert scores.max() > 0.6


def test_known_crops_are_pairs_of_the_sample_as_its_margin_wants_them():
    crops, labels = doctor.known_crops(MARGINS["slides"])
    wider, _ = doctor.known_crops(MARGINS["upstream"])
    assert labels.tolist() == [0, 1] * 6
    for real, fake in zip(crops[::2], crops[1::2], strict=True):
        assert 0.02 < (real != fake).any(axis=2).mean() < 0.9
    assert all(wide.size > crop.size for wide, crop in zip(wider, crops, strict=True))


def untrained():
    torch.manual_seed(0)
    return DeepfakeClassifier("tiny").eval()


def from_formula():
    """A network that is sure of answers that mean nothing."""
    model = untrained()
    model.load_state_dict(doctor.formula_weights(model))
    return model


@pytest.mark.parametrize(
    ("make", "begins", "says"),
    [
        (from_formula, "ok ", "no fault in a network that learned from other data"),
        (untrained, "BAD ", "scores of m.pt: untrained: "),
    ],
)
def test_the_command_names_what_is_wrong_with_a_network(
    make, begins, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(doctor, "GOLDEN", {})
    save_checkpoint(tmp_path / "m.pt", make())
    assert main(["doctor", "--checkpoint", str(tmp_path / "m.pt")]) == (begins == "BAD ")
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "scores of" in line)
    assert said.startswith(begins)
    assert says in said


LABELS = np.arange(12) % 2
NOISE = np.random.default_rng(0).uniform(-1, 1, 12)


@pytest.mark.parametrize(
    ("logits", "fault"),
    [
        (4 * LABELS - 2 + NOISE, ""),
        (2 - 4 * LABELS + NOISE, "inverted"),
        (np.full(12, 0.0), "constant"),
        (3 + 0.01 * NOISE, "constant"),
        (0.01 * NOISE, "untrained"),
        (-0.4 + 0.4 * NOISE, "unsure"),  # upstream's weights in another network: p of 0.3 to 0.5
        (np.full(12, np.nan), "no numbers"),
        (np.r_[np.inf, np.zeros(11)], "no numbers"),
    ],
)
def test_what_is_wrong_with_answers_is_named(logits, fault):
    assert doctor.name_fault(logits, LABELS)[0] == fault


def release(path, monkeypatch) -> None:
    """From now on, upstream has released these bytes."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(doctor.RELEASED, RELEASED_NAME, (path.stat().st_size, digest))


def test_a_file_with_a_released_digest_is_never_faulted_for_the_sample(tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    save_checkpoint(path, untrained())
    assert not doctor.check_checkpoint(path)[-1].ok
    release(path, monkeypatch)
    loaded, scores = doctor.check_checkpoint(path)
    assert (loaded.ok, scores.ok) == (True, True)
    assert f"as upstream released {RELEASED_NAME}" in loaded.found
    assert "no sign of a fault" in scores.advice


def test_a_released_file_that_does_not_load_blames_the_libraries(tmp_path, monkeypatch):
    path = tmp_path / RELEASED_NAME
    torch.save({"state_dict": {"module.fc.weight": torch.zeros(1, 2560)}}, path)
    release(path, monkeypatch)
    (finding,) = doctor.check_checkpoint(path)
    assert not finding.ok
    assert "does not fit" in finding.found
    assert "the libraries do not build its network" in finding.advice


def test_a_released_name_without_a_file_or_with_other_bytes_is_said_to_be_so(tmp_path):
    path = tmp_path / RELEASED_NAME
    (missing,) = doctor.check_checkpoint(path)
    assert "no such checkpoint" in missing.found
    assert "take one of release 0.0.1" in missing.advice
    path.write_text("half a download")
    (unread,) = doctor.check_checkpoint(path)
    save_checkpoint(path, from_formula())
    loaded, scores = doctor.check_checkpoint(path)
    for finding in (unread, loaded):
        assert not finding.ok
        assert "not what upstream released under this name, 266910617 bytes" in finding.advice
    assert hashlib.sha256(path.read_bytes()).hexdigest() in loaded.found
    assert scores.ok


def test_the_libraries_and_the_seven_released_files_of_a_folder_are_told(
    tmp_path, monkeypatch, capsys
):
    assert len({digest for _, digest in doctor.RELEASED.values()}) == 7
    known = doctor.Finding("the network", True, "")
    monkeypatch.setattr(doctor, "check_network", lambda encoder: known)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / RELEASED_NAME).write_text("half a download")
    assert main(["doctor", "--checkpoint", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 7 by name (release 0.0.1 of https://github.com/selimsef" in printed
    assert any(line.startswith("BAD") and RELEASED_NAME in line for line in printed.splitlines())
    assert printed.count("the network") == 2  # B3 and B7


@pytest.mark.parametrize(("factor", "fault"), [(1, ""), (-1, "inverted")])
def test_a_network_that_knows_the_sample_is_well_and_its_opposite_is_not(factor, fault):
    """Its last layer is fitted to the known crops."""
    torch.manual_seed(0)
    model = DeepfakeClassifier("tiny").eval()
    model.load_state_dict(doctor.formula_weights(model))
    crops, labels = doctor.known_crops(model.card.margin)
    transform = doctor.valid_transforms(model.card.size)
    with torch.no_grad():
        pictures = torch.stack([transform(image=crop)["image"] for crop in crops])
        pooled = model.encoder.forward_features(pictures).mean(dim=(2, 3)).double()
        centre = pooled.mean(dim=0)
        direction = torch.linalg.pinv(pooled - centre) @ torch.from_numpy(6.0 * labels - 3)
        model.fc.weight.copy_(factor * direction[None])
        model.fc.bias.copy_(-factor * (centre @ direction))
    finding = doctor.check_scores(model, "m.pt")
    assert finding.ok == (not fault)
    assert finding.found.startswith(f"{fault}: " if fault else "of 12 faces")
