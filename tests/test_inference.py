import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from dfdc_lib import inference
from dfdc_lib.inference import choose_backend, compile_network, make_scorer
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def large() -> DeepfakeClassifier:
    """A B3 of random weights, with statistics that fit its pictures, so that no signal dies out on the way."""
    torch.manual_seed(0)
    model = DeepfakeClassifier("b3").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of this one batch
    with torch.inference_mode():
        model(pictures())
    return model.eval()


def pictures(n: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    smooth = torch.randn(n, 3, 10, 10, generator=rng)
    return nn.functional.interpolate(smooth, size=300, mode="bilinear").contiguous()


@pytest.fixture(scope="module")
def plain(large) -> tuple[torch.Tensor, torch.Tensor]:
    """Its logits, and the size of what each is a sum of: a random network's sum itself is near zero."""
    with torch.inference_mode():
        features = large.encoder.forward_features(pictures()).mean(dim=(2, 3))
        return large(pictures()), (features * large.fc.weight).abs().sum(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("auto", 0.03)])
def test_a_fast_score_is_the_plain_one(large, plain, backend, precision, tolerance):
    logits, size = plain
    with torch.inference_mode():
        fast = make_scorer(large, 300, backend, precision)(pictures()).float()
    assert ((fast - logits).abs() / size).max() < tolerance


def test_compiled_networks_take_any_number_of_pictures():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    request = inference.Request(compile_network(network, torch.zeros(1, 3, 9, 9), (-1, 3, -1, -1)))
    for shape in ((1, 3, 9, 9), (5, 3, 9, 9), (2, 3, 20, 11)):
        given = torch.randn(shape)
        with torch.inference_mode():
            assert request(given)[0].numpy() == pytest.approx(network(given).numpy(), abs=0.02)


def test_a_small_network_is_left_as_it_is():
    model = DeepfakeClassifier("tiny").eval()
    crops = torch.randn(3, 3, 112, 112)
    plain = model.predict(crops)
    assert model.speed_up().predict(crops).numpy() == pytest.approx(plain.numpy(), abs=1e-6)


def test_a_model_that_learns_is_computed_as_it_stands():
    """What was compiled holds the old weights; training must forget it."""
    torch.manual_seed(0)
    model = DeepfakeClassifier("tiny").eval()
    crops = torch.randn(2, 3, 112, 112)
    before = model.speed_up("openvino", "fp32").predict(crops)
    assert before.numpy() == pytest.approx(model(crops).sigmoid().detach().numpy(), abs=1e-4)
    model.train()
    with torch.no_grad():
        model.fc.bias += 1
    after = model.eval().predict(crops)
    assert after.numpy() == pytest.approx(torch.sigmoid(before.logit() + 1).numpy(), abs=1e-3)


def test_a_model_can_learn_after_it_was_fast():
    model = DeepfakeClassifier("tiny").eval().speed_up("torch")
    crops = torch.randn(2, 3, 112, 112)
    model.predict(crops)
    model.train()(crops).sum().backward()
    assert model.fc.weight.grad is not None


def test_other_weights_are_compiled_again():
    model, other = DeepfakeClassifier("tiny").eval().speed_up("openvino", "fp32"), DeepfakeClassifier("tiny").eval()
    crops = torch.randn(2, 3, 112, 112)
    model.predict(crops)
    model.load_state_dict(other.state_dict())
    assert model.predict(crops).numpy() == pytest.approx(other.predict(crops).numpy(), abs=1e-4)


def test_a_fast_model_can_be_saved(tmp_path):
    model = DeepfakeClassifier("tiny").eval().speed_up("openvino")
    model.predict(torch.randn(1, 3, 112, 112))
    save_checkpoint(tmp_path / "m.pt", model)
    assert load_checkpoint(tmp_path / "m.pt").card == model.card


def test_auto_takes_what_is_there(monkeypatch):
    assert choose_backend("auto", "cpu") == "openvino"
    assert choose_backend("auto", "cuda") == "torch"
    assert choose_backend("torch", "cpu") == "torch"
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    assert choose_backend("auto", "cpu") == "torch"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_backend("onnx", "cpu"), "'onnx'"),
        (lambda: choose_backend("openvino", "cuda"), "the device is cuda"),
        (lambda: make_scorer(nn.Linear(1, 1), 8, precision="fp8"), "'fp8'"),
    ],
)
def test_a_wrong_choice_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compiling_tells_nobody():
    """OpenVINO would start processes that report to Google Analytics: when it is imported, and when it converts."""
    script = """
from openvino_telemetry.backend.backend_ga4 import GA4Backend
GA4Backend.send = lambda self, message: print("told", message)
import torch
from dfdc_lib.inference import compile_network
compile_network(torch.nn.Conv2d(3, 1, 3), torch.zeros(1, 3, 8, 8), (-1, 3, 8, 8))
"""
    plain = {name: value for name, value in os.environ.items() if name != "CI"}
    ran = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert "told" not in ran.stdout
