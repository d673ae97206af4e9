"""Run a trained network fast: in torch, or compiled by OpenVINO on a CPU (extra `cpu`)."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
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
        raise ValueError(f"OpenVINO runs on the CPU, but the device is {device}: choose torch")
    if backend == "auto":
        return "openvino" if on_cpu and find_spec("openvino") else "torch"
    return backend


def _import_openvino() -> ModuleType:
    with patch.dict(os.environ, UNTOLD):
        import openvino
    return openvino


def compile_network(network: nn.Module, example: Tensor, shape: Sequence[int], **settings):
    """Compile a network with OpenVINO. shape: its input's, -1: any size. settings: OpenVINO's."""
    openvino = _import_openvino()
    shapes = [openvino.PartialShape(list(shape))]
    with warnings.catch_warnings(), torch.no_grad(), patch.dict(os.environ, UNTOLD):
        # Tracing is deprecated; torch.export gives the same scores and takes 3 to 7 times as long.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network.eval(), example, check_trace=False)
        converted = openvino.convert_model(traced, input=shapes, example_input=example)
    # Pinned threads of two processes would share the first core and leave the second idle.
    return _core().compile_model(converted, "CPU", {"ENABLE_CPU_PINNING": False} | settings)


@cache
def _core():
    """OpenVINO's core, one per process: each replaces the last one's stack for signals by its own,
    and if the first ends first, it restores a stack that is gone. Ctrl-C would then crash."""
    return _import_openvino().Core()


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

    precision: see `choose_precision`. With "auto" a small network stays in torch and fp32.
    """
    device, (chosen, number) = model.fc.weight.device, choose_arithmetic(model, backend, precision)
    if chosen == "openvino":
        request = Request(_compile_classifier(model, number))
        return lambda crops: request(crops)[0].float().sigmoid()
    model.to(memory_format=torch.channels_last)

    def score_by_torch(crops: Tensor) -> Tensor:
        with torch.autocast(device.type, number, enabled=number != torch.float32):
            return score(model, crops.to(device, memory_format=torch.channels_last))

    return score_by_torch


def choose_arithmetic(
    model: DeepfakeClassifier, backend: Backend, precision: Precision
) -> tuple[str, torch.dtype]:
    """Which back end computes a model's scores here, in which precision; see `make_scorer`."""
    device = model.fc.weight.device
    large = sum(p.numel() for p in model.parameters()) >= LARGE
    number = choose_precision(precision, device, large)
    return choose_backend(backend if large or backend != "auto" else "torch", device), number


def has_bf16(device: torch.device) -> bool:
    """Does this device compute in bfloat16, and not only emulate it, as a T4 does?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_precision(precision: Precision, device: torch.device, large: bool = True) -> torch.dtype:
    """The precision to compute a network in. "auto": fp32 for a small one; for a large one fp16 on
    a GPU, as upstream, and bf16 on a CPU.

    A CPU without bf16 uses fp32 instead. Raises ValueError for fp16 on a CPU, and for bf16 on a GPU
    that can only emulate it.
    """
    on_gpu = device.type == "cuda"
    if precision == "auto":
        precision = "fp32" if not large else "fp16" if on_gpu else "bf16"
    if precision == "fp16" and not on_gpu:
        raise ValueError("fp16 is for GPUs: choose bf16 or fp32")
    if precision == "bf16" and not has_bf16(device):
        if on_gpu:
            raise ValueError("this GPU does not compute in bf16: choose fp16 or fp32")
        precision = "fp32"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _compile_classifier(model: DeepfakeClassifier, number: torch.dtype):
    hint = "bf16" if number == torch.bfloat16 else "f32"
    settings: dict = {"INFERENCE_PRECISION_HINT": hint}
    # A process that shares the machine has a limit of its own.
    settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    example = torch.zeros(1, 3, model.card.size, model.card.size)
    return compile_network(model, example, (-1, *example.shape[1:]), **settings)
