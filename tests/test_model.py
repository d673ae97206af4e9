import pickle

import numpy as np
import pytest
import timm
import torch

from dfdc_lib.config import ENCODERS, EncoderPreset
from dfdc_lib.model import DeepfakeClassifier, cost_of, create_encoder, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepfakeClassifier("tiny").eval()


def test_the_head_is_an_average_and_a_matrix_product(model):
    crops = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        features = model.encoder.forward_features(crops)
        by_hand = features.mean(dim=(2, 3)) @ model.fc.weight[0] + model.fc.bias
        assert torch.allclose(model(crops), by_hand, atol=1e-6)
    assert torch.allclose(model.predict(crops), torch.sigmoid(by_hand), atol=1e-6)


def test_the_demo_encoder_is_small(model):
    assert sum(p.numel() for p in model.parameters()) < 400_000


def test_unknown_encoders_name_the_choices():
    with pytest.raises(ValueError, match="b3, b4, b5"):
        DeepfakeClassifier("b99")


def test_a_checkpoint_comes_back_as_it_was(model, tmp_path):
    save_checkpoint(tmp_path / "m.pt", model)
    loaded = load_checkpoint(tmp_path / "m.pt")
    crops = torch.randn(3, 3, ENCODERS["tiny"].size, ENCODERS["tiny"].size)
    assert torch.equal(loaded.predict(crops), model.predict(crops))
    assert loaded.card == model.card


class Evil:
    def __reduce__(self):
        return (print, ("executed!",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"card": Evil(), "state_dict": {}}, file, protocol=2)
    torch.save({"card": Evil(), "state_dict": {}}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(ValueError, match="can be read safely"):
            load_checkpoint(tmp_path / name)
    assert "executed!" not in capsys.readouterr().out


def test_broken_checkpoints_are_clear_errors(model, tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    save_checkpoint(tmp_path / "whole.pt", model)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save(stored | {"card": stored["card"] | {"encoder": "b3"}}, tmp_path / "b3.pt")
    for name, message in (
        ("empty", "safely"),
        ("other", "lacks 'state_dict'"),
        ("cut", "safely"),
        ("b3", "does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        load_checkpoint(tmp_path / "gone.pt")


@pytest.fixture(scope="module")
def upstream_b7():
    """A whole timm B7 and a linear layer, and their weights under upstream's names."""
    torch.manual_seed(0)
    encoder = timm.create_model("tf_efficientnet_b7.ns_jft_in1k", pretrained=False).eval()
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    weights |= {"module.fc.weight": torch.randn(1, 2560) / 50, "module.fc.bias": torch.tensor([0.1])}
    return encoder, weights


def test_upstreams_b7_gives_the_logit_that_timm_a_mean_and_a_product_give(upstream_b7, tmp_path):
    encoder, weights = upstream_b7
    released = {"epoch": 36, "state_dict": weights, "bce_best": np.float64(0.2)}  # a numpy number, as in old files
    torch.save(released, tmp_path / "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36")
    model = load_checkpoint(tmp_path / "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36")
    assert (model.card.encoder, model.card.margin, model.card.size) == ("b7", "upstream", 380)
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = encoder.forward_features(crops).mean(dim=(2, 3))
        by_hand = pooled @ weights["module.fc.weight"][0] + weights["module.fc.bias"]
        assert torch.allclose(model(crops), by_hand, atol=1e-5)


def test_a_mismatch_names_the_keys(upstream_b7, tmp_path):
    _, weights = upstream_b7
    wrong = {name: value for name, value in weights.items() if name != "module.encoder.conv_stem.weight"}
    torch.save({"state_dict": wrong | {"module.encoder.extra": torch.zeros(1)}}, tmp_path / "wrong")
    with pytest.raises(
        ValueError, match=r"1 missing, such as encoder.conv_stem.weight; 1 unknown, such as encoder.extra"
    ):
        load_checkpoint(tmp_path / "wrong")
    torch.save({"state_dict": {"fc.weight": torch.zeros(1, 7)}}, tmp_path / "strange")
    with pytest.raises(ValueError, match="no fc.weight of B3 to B7"):
        load_checkpoint(tmp_path / "strange")


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("b6", "b7", "resnest200")])
def test_every_preset_gives_one_logit_a_crop(name):
    model = DeepfakeClassifier(name).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2,)


def test_any_encoder_that_timm_knows_is_taken():
    model = DeepfakeClassifier("mobilenetv3_small_050")
    assert model.card.size == 224
    assert model(torch.randn(2, 3, 64, 64)).shape == (2,)


def test_pretrained_weights_come_from_a_file_or_a_folder(tmp_path, capsys):
    preset = EncoderPreset("test_efficientnet", 112, 4)
    torch.manual_seed(1)
    source = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "test_efficientnet.pth")
    for place in (tmp_path, tmp_path / "test_efficientnet.pth"):
        loaded = create_encoder(preset, place)
        assert torch.equal(loaded.conv_stem.weight, source.conv_stem.weight)
    with pytest.raises(FileNotFoundError, match="resnest50d.in1k.safetensors"):
        create_encoder(ENCODERS["resnest50"], tmp_path)


def test_without_a_network_training_starts_from_scratch_and_says_so(monkeypatch, capsys):
    real = timm.create_model

    def offline(name, pretrained=False, **settings):
        if pretrained:
            raise OSError("no network")
        return real(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    create_encoder(ENCODERS["tiny"], True)
    assert capsys.readouterr().out.count("\n") == 1


def test_sync_batchnorm_leaves_the_encoders_output_unchanged():
    """timm's converter keeps the activation that its BatchNorm carries; torch's own drops it without a word."""
    from timm.layers import convert_sync_batchnorm

    torch.manual_seed(0)
    encoder, crops = DeepfakeClassifier("tiny").encoder.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.forward_features(crops)
        assert torch.equal(convert_sync_batchnorm(encoder).forward_features(crops), expected)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in encoder.modules())


def test_costs_are_those_that_the_encoders_paper_states():
    """EfficientNet (arXiv 1905.11946), table 2: parameters with ImageNet's classifier, MACs at the paper's sizes."""
    for name, size, features, parameters, macs in (("b3", 300, 1536, 12e6, 1.8e9), ("b7", 600, 2560, 66e6, 37e9)):
        cost = cost_of(name, size)
        assert cost.parameters + features * 1000 == pytest.approx(parameters, rel=0.03)
        assert cost.macs == pytest.approx(macs, rel=0.04)
    assert cost_of("tiny", 128).kept_bytes == pytest.approx(4 * cost_of("tiny", 64).kept_bytes, rel=0.05)
