"""Run a trained network fast: in torch, or compiled by OpenVINO on a CPU (extra `cpu`)."""

import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dfdc_lib.config import Backend, Precision
from dfdc_lib.model import DeepfakeClassifier, score

UNTOLD = {"CI": "true"}  # else OpenVINO reports its import and conversions to Google Analytics
LARGE = 5_000_000  # parameters; compiling a smaller network takes longer than it saves


def choose_backend(backend: str, device: torch.device | str) -> str:
    """Resolve "auto": OpenVINO on a CPU where it is installed (see benchmarks/), else torch.

    Raises ValueError for an unknown backend, or for OpenVINO on a GPU.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
    on_cpu = torch.device(device).type == "cpu"
    if backend == "openvino" and not on_cpu:
        raise ValueError(f"OpenVINO computes on the CPU, and the device is {device}: choose torch")
    if backend == "auto":
        return "openvino" if on_cpu and find_spec("openvino") else "torch"
    return backend


def _import_openvino() -> ModuleType:
    with patch.dict(os.environ, UNTOLD):
        import openvino
    return openvino


def compile_network(network: nn.Module, example: Tensor, shape: Sequence[int], **settings):
    """Compile a network by OpenVINO. shape: its input's, -1 for any size. settings: OpenVINO's."""
    openvino = _import_openvino()
    shapes = [openvino.PartialShape(list(shape))]
    with warnings.catch_warnings(), torch.no_grad(), patch.dict(os.environ, UNTOLD):
        warnings.simplefilter("ignore")  # torch deprecates tracing, which OpenVINO needs
        traced = torch.jit.trace(network.eval(), example, check_trace=False)
        converted = openvino.convert_model(traced, input=shapes, example_input=example)
    # Pinned threads of two processes would share the first core and leave the second idle.
    return openvino.Core().compile_model(converted, "CPU", {"ENABLE_CPU_PINNING": False} | settings)


class Request:
    """A compiled network that is called like torch's. Only one thread may use it."""

    def __init__(self, compiled):
        self._request = compiled.create_infer_request()

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        """Return the network's outputs, in its order, for float32 pictures."""
        outputs = self._request.infer([pictures.contiguous().numpy()], share_inputs=True)
        return [torch.from_numpy(values) for values in outputs.to_tuple()]


def make_scorer(
    model: DeepfakeClassifier, backend: Backend = "auto", precision: Precision = "auto"
) -> Callable[[Tensor], Tensor]:
    """Return a faster `model.score` for a model whose weights no longer change.

    precision: "bf16" holds only where the processor computes with it. By "auto" a large network
    takes bf16; a small one stays in torch and fp32.
    """
    device = model.fc.weight.device
    large = sum(p.numel() for p in model.parameters()) >= LARGE
    low = precision == "bf16" or (precision == "auto" and large)
    if choose_backend(backend if large or backend != "auto" else "torch", device) == "openvino":
        request = Request(_compile_classifier(model, low))
        return lambda crops: request(crops)[0].float().sigmoid()
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    low = low and (able or device.type == "cuda")
    model.to(memory_format=torch.channels_last)

    def score_by_torch(crops: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return score(model, crops.to(memory_format=torch.channels_last))

    return score_by_torch


def _compile_classifier(model: DeepfakeClassifier, low: bool):
    able = "BF16" in _import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings: dict = {"INFERENCE_PRECISION_HINT": "bf16" if low and able else "f32"}
    # A process that shares the machine has been given its own number.
    settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    example = torch.zeros(1, 3, model.card.size, model.card.size)
    return compile_network(model, example, (-1, *example.shape[1:]), **settings)
