"""The doctor of checkpoints: what it says of networks whose condition is known."""

import hashlib

import numpy as np
import pytest
import timm.layers
import torch
from torch import nn

from dfdc_lib import doctor
from dfdc_lib.cli import main
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint

RELEASED_NAME = "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"


def replace_modules(model, kind, make):
    """Put make(module) in the place of every module of a kind."""
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))
    return model


def pad_symmetrically(convolution):
    """The same convolution, padded alike on all sides; TensorFlow's way pads the far sides more where it strides."""
    symmetric = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size, convolution.stride,
        tuple(side // 2 for side in convolution.kernel_size), groups=convolution.groups, bias=False,
    )  # fmt: skip
    symmetric.weight = convolution.weight
    return symmetric


def pool_by_maximum(model):
    model.features = nn.AdaptiveMaxPool2d(1)  # the mean of one value is that value
    return model


def squeeze_by_maximum(model):
    for module in model.modules():
        if isinstance(module, timm.models._efficientnet_blocks.SqueezeExcite):
            module.register_forward_pre_hook(lambda block, inputs: setattr(block, "seen", inputs[0]))
            module.conv_reduce.register_forward_pre_hook(
                lambda _, squeezed, block=module: (block.seen.amax((2, 3), keepdim=True),)
            )
    return model


def shrink_epsilon(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5  # PyTorch's own; TensorFlow's networks have 1e-3
    return model


MUTATIONS = {
    "activation": lambda model: replace_modules(model, nn.SiLU, lambda _: nn.ReLU()),
    "padding": lambda model: replace_modules(model, timm.layers.Conv2dSame, pad_symmetrically),
    "pooling": pool_by_maximum,
    "squeeze": squeeze_by_maximum,
    "epsilon": shrink_epsilon,
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
    mutate = MUTATIONS[mutation]
    monkeypatch.setattr(doctor, "DeepfakeClassifier", lambda name: mutate(DeepfakeClassifier(name)))
    finding = doctor.check_network(encoder)
    assert not finding.ok
    assert "another network" in finding.advice


def test_a_library_that_does_not_know_the_network_is_found_out(monkeypatch):
    def refuse(name):
        raise RuntimeError(f"Unknown model ({name})")

    monkeypatch.setattr(doctor, "DeepfakeClassifier", refuse)
    finding = doctor.check_network("b3")
    assert not finding.ok
    assert "Unknown model" in finding.found


def test_portraits_that_are_read_otherwise_blame_no_network(monkeypatch):
    honest = doctor.portrait
    monkeypatch.setattr(doctor, "portrait", lambda person: honest(person) ^ 1)
    finding = doctor.check_network("b3")
    assert finding.ok
    assert "can't be told" in finding.found


def test_formula_weights_give_scores_that_spread_like_a_trained_networks():
    model = DeepfakeClassifier("b3").eval()
    model.load_state_dict(doctor.formula_weights(model))
    assert model.encoder.bn1.num_batches_tracked == 0
    # The same numbers on every machine, to the bit.
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(model.state_dict().items()))).hexdigest()
    assert digest[:16] == "9292374775325b2a"
    transform = doctor.valid_transforms(model.card.size)
    scores = model.predict(torch.stack([transform(image=crop)["image"] for crop in doctor.known_crops(0.2)[0][::2]]))
    assert scores.min() < 0.3
    assert scores.max() > 0.6


def test_known_crops_are_pairs_of_the_sample_as_its_margin_wants_them():
    crops, labels = doctor.known_crops(0.2)
    assert labels.tolist() == [0, 1] * 6
    for real, fake in zip(crops[::2], crops[1::2], strict=True):
        assert real.shape == fake.shape
        changed = (real != fake).any(axis=2)
        assert 0.02 < changed.mean() < 0.9
    wider = doctor.known_crops("upstream")[0]
    assert all(wide.size > crop.size for wide, crop in zip(wider, crops, strict=True))


def untrained(seed=0, encoder="tiny"):
    torch.manual_seed(seed)
    return DeepfakeClassifier(encoder).eval()


@pytest.fixture(scope="module")
def knowing():
    """A network that tells the known crops apart: its last layer is fitted to them, as training would do."""
    model = untrained()
    model.load_state_dict(doctor.formula_weights(model))
    crops, labels = doctor.known_crops(model.card.margin)
    transform = doctor.valid_transforms(model.card.size)
    with torch.no_grad():
        pictures = torch.stack([transform(image=crop)["image"] for crop in crops])
        pooled = model.encoder.forward_features(pictures).mean(dim=(2, 3)).double()
        centre = pooled.mean(dim=0)
        direction = torch.linalg.pinv(pooled - centre) @ torch.from_numpy(6.0 * labels - 3)
        model.fc.weight.copy_(direction[None])
        model.fc.bias.copy_(-(centre @ direction))
    return model


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Save a model, let the doctor look at it from the command line; returns exit code and what was printed of it."""
    monkeypatch.setattr(doctor, "GOLDEN", {})

    def look(model, name="m.pt"):
        save_checkpoint(tmp_path / name, model)
        code = main(["doctor", "--checkpoint", str(tmp_path / name)])
        return code, next(line for line in capsys.readouterr().out.splitlines() if f"scores of {name}" in line)

    return look


def with_head(model, factor, shift=0.0):
    """A copy whose logits are factor * logit + shift."""
    changed = untrained()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.fc.weight *= factor
        changed.fc.bias.copy_(factor * changed.fc.bias + shift)
    return changed


def test_a_network_that_knows_the_sample_is_well_and_inverted_is_named(knowing, examine):
    code, said = examine(knowing)
    assert code == 0
    assert said.startswith("ok ")
    code, said = examine(with_head(knowing, -1))
    assert code == 1
    assert "inverted: " in said


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_network_is_named(seed, examine):
    code, said = examine(untrained(seed))
    assert code == 1
    assert "untrained: " in said


@pytest.mark.parametrize("logit", [0, -0.7, 3])
def test_a_constant_network_is_named(logit, examine):
    code, said = examine(with_head(untrained(), 0, logit))
    assert code == 1
    assert "constant: " in said


def test_a_network_that_only_knows_other_data_has_no_fault(examine):
    model = untrained()
    model.load_state_dict(doctor.formula_weights(model))  # sure of its answers, and they mean nothing
    code, said = examine(model)
    assert code == 0
    assert "no fault in a network that learned from other data" in said


def test_a_network_that_is_sure_of_nothing_is_said_to_be_so():
    """What upstream's weights give when a library builds another network: 0.3 to 0.49, for real and fake alike."""
    p_fake = np.random.default_rng(0).uniform(0.3, 0.49, 12)
    fault, _ = doctor.name_fault(np.log(p_fake / (1 - p_fake)), np.arange(12) % 2)
    assert fault == "unsure"


def test_answers_that_are_no_numbers_are_named():
    for value in (np.nan, np.inf):
        for count in (1, 12):
            logits = np.r_[np.full(count, value), np.zeros(12 - count)]
            assert doctor.name_fault(logits, np.arange(12) % 2)[0] == "no numbers"


@pytest.mark.parametrize("factor", [0, -1])
def test_a_file_with_a_released_digest_is_never_faulted_for_the_sample(factor, knowing, tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    save_checkpoint(path, with_head(knowing, factor))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert not doctor.check_checkpoint(path)[-1].ok
    monkeypatch.setitem(doctor.RELEASED, RELEASED_NAME, (path.stat().st_size, digest))
    loaded, scores = doctor.check_checkpoint(path)
    assert loaded.ok
    assert f"as upstream released {RELEASED_NAME}" in loaded.found
    assert scores.ok
    assert "no sign of a fault" in scores.advice


def test_a_released_file_that_does_not_load_blames_the_libraries(tmp_path, monkeypatch):
    path = tmp_path / RELEASED_NAME
    torch.save({"state_dict": {"module.fc.weight": torch.zeros(1, 2560)}}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(doctor.RELEASED, RELEASED_NAME, (path.stat().st_size, digest))
    (finding,) = doctor.check_checkpoint(path)
    assert not finding.ok
    assert "does not fit" in finding.found
    assert "the libraries do not build its network" in finding.advice


def test_what_is_not_there_is_said_to_be_missing(tmp_path):
    (finding,) = doctor.check_checkpoint(tmp_path / RELEASED_NAME)
    assert "no such checkpoint" in finding.found
    assert "take one of release 0.0.1" in finding.advice


def test_a_released_name_with_other_bytes_is_said_to_be_so(knowing, tmp_path):
    path = tmp_path / RELEASED_NAME
    path.write_text("half a download")
    (unread,) = doctor.check_checkpoint(path)
    save_checkpoint(path, knowing)
    loaded, scores = doctor.check_checkpoint(path)
    for finding in (unread, loaded):
        assert not finding.ok
        assert "not what upstream released under this name" in finding.advice
        assert "266910617 bytes" in finding.advice
    assert hashlib.sha256(path.read_bytes()).hexdigest() in loaded.found
    assert scores.ok


def test_the_seven_released_files_of_a_folder_and_the_libraries_are_told(tmp_path, monkeypatch, capsys):
    assert len({digest for _, digest in doctor.RELEASED.values()}) == 7
    monkeypatch.setattr(doctor, "check_network", lambda encoder: doctor.Finding(f"network {encoder}", True, "fine"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / RELEASED_NAME).write_text("half a download")
    assert main(["doctor", "--checkpoint", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 7 by name (release 0.0.1 of https://github.com/selimsef" in printed
    assert [line for line in printed.splitlines() if line.startswith("BAD") and RELEASED_NAME in line]
    assert printed.count("network b3") == printed.count("network b7") == 1
