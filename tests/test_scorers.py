import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from dfdc_lib.fast import scorers
from dfdc_lib.fast.scorers import choose_backend, make_scorer
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint, save_checkpoint, score


def smooth_pictures(size: int, n: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    smooth = torch.randn(n, 3, 10, 10, generator=rng)
    return nn.functional.interpolate(smooth, size=size, mode="bilinear").contiguous()


@pytest.fixture(scope="module")
def large() -> DeepfakeClassifier:
    """A B3 of random weights, whose statistics fit its pictures: no signal dies on the way."""
    torch.manual_seed(0)
    model = DeepfakeClassifier("b3").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of this one batch
    with torch.inference_mode():
        model(smooth_pictures(300))
    return model.eval()


@pytest.fixture(scope="module")
def plain(large) -> tuple[torch.Tensor, torch.Tensor]:
    """Its logits, and the size of what each is a sum of: a random network's sum is near zero."""
    crops = smooth_pictures(300)
    with torch.inference_mode():
        features = large.encoder.forward_features(crops).mean(dim=(2, 3))
        return large(crops), (features * large.fc.weight).abs().sum(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("auto", 0.03)])
def test_a_fast_score_is_the_plain_one(large, plain, backend, precision, tolerance):
    logits, size = plain
    fast = make_scorer(large, backend, precision)(smooth_pictures(300))
    assert ((fast.logit() - logits).abs() / size).max() < tolerance


@pytest.mark.parametrize("backend", ["auto", "torch", "openvino"])
def test_a_small_networks_fast_score_is_the_plain_one(backend):
    torch.manual_seed(0)
    model = DeepfakeClassifier("tiny")
    for n in (1, 5):
        crops = smooth_pictures(112, n)
        fast = make_scorer(model, backend, "auto")(crops)
        assert (fast.dtype, fast.shape, fast.device.type) == (torch.float32, (n,), "cpu")
        assert fast.numpy() == pytest.approx(score(model, crops).numpy(), abs=1e-5)


def test_a_model_can_be_saved_and_learn_after_it_was_scored(tmp_path):
    model = DeepfakeClassifier("tiny")
    for backend in ("torch", "openvino"):
        make_scorer(model, backend)(torch.randn(2, 3, 112, 112))
        model.train()(torch.randn(2, 3, 112, 112)).sum().backward()
        assert model.fc.weight.grad is not None
    save_checkpoint(tmp_path / "m.pt", model)
    assert load_checkpoint(tmp_path / "m.pt").card == model.card


def test_auto_takes_what_is_there_and_a_wrong_choice_is_named(monkeypatch):
    assert choose_backend("auto", "cpu") == "openvino"
    assert choose_backend("auto", "cuda") == "torch"
    assert choose_backend("torch", "cpu") == "torch"
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    assert choose_backend("auto", "cpu") == "torch"
    for backend, device, message in (("onnx", "cpu", "'onnx'"), ("openvino", "cuda", "is cuda")):
        with pytest.raises(ValueError, match=message):
            choose_backend(backend, device)


def test_compiling_tells_nobody():
    """OpenVINO would start processes that report to Google Analytics: at import and conversion."""
    script = """
from openvino_telemetry.backend.backend_ga4 import GA4Backend
GA4Backend.send = lambda self, message: print("told", message)
import torch
from dfdc_lib.fast.scorers import compile_network
compile_network(torch.nn.Conv2d(3, 1, 3), torch.zeros(1, 3, 8, 8), (-1, 3, 8, 8))
"""
    plain = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    assert "told" not in ran.stdout


@pytest.mark.parametrize(
    ("wanted", "device", "large", "bf16", "number"),
    [
        ("auto", "cuda", True, True, torch.float16),  # as upstream
        ("auto", "cuda", False, True, torch.float32),
        ("bf16", "cuda", True, True, torch.bfloat16),
        ("bf16", "cuda", True, False, "choose fp16 or fp32"),  # a T4
        ("fp16", "cuda", False, False, torch.float16),
        ("auto", "cpu", True, True, torch.bfloat16),
        ("auto", "cpu", True, False, torch.float32),
        ("bf16", "cpu", False, False, torch.float32),
        ("fp16", "cpu", True, True, "choose bf16 or fp32"),
        ("fp32", "cpu", True, True, torch.float32),
    ],
)
def test_numbers_are_the_machines(monkeypatch, wanted, device, large, bf16, number):
    def emulated_too(including_emulation=True):
        return bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated_too)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    given = (wanted, torch.device(device), large)
    if isinstance(number, str):
        with pytest.raises(ValueError, match=number):
            scorers.choose_precision(*given)
    else:
        assert scorers.choose_precision(*given) == number


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signal")
def test_a_signal_finds_its_handler_after_compiled_networks_have_ended():
    """The first that was compiled ends first; a crash would end the process."""
    pytest.importorskip("openvino")
    code = """if True:
    import gc, signal, torch
    from dfdc_lib.fast.scorers import compile_network
    example = torch.zeros(1, 3)
    first, second = (compile_network(torch.nn.Linear(3, 1), example, (-1, 3)) for _ in range(2))
    del first
    gc.collect()
    del second
    gc.collect()
    signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
    signal.raise_signal(signal.SIGUSR1)
    """
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
