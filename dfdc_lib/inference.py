"""Run a trained network fast: by torch as it is, or compiled by OpenVINO where there is only a CPU (extra `cpu`)."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

from dfdc_lib.config import BACKENDS, PRECISIONS

LARGE = 5_000_000  # parameters: below that, compiling takes longer than it saves on some hundred pictures


def choose_backend(backend: str, device: torch.device | str) -> str:
    """The back end that "auto" stands for: OpenVINO on a CPU where it is installed (benchmarks/), else torch.

    Raises ValueError for a word that is none, or for OpenVINO on a GPU.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    on_cpu = torch.device(device).type == "cpu"
    if backend == "openvino" and not on_cpu:
        raise ValueError(f"OpenVINO computes on the CPU, and the device is {device}: choose backend torch")
    if backend == "auto":
        return "openvino" if on_cpu and find_spec("openvino") else "torch"
    return backend


@contextmanager
def _untold() -> Iterator[None]:
    """OpenVINO reports its import and each conversion to Google Analytics, except from CI: so this passes for CI."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        os.environ.pop("CI")
        if before is not None:
            os.environ["CI"] = before


def _import_openvino() -> ModuleType:
    with _untold():
        import openvino
    return openvino


def compile_network(network: nn.Module, example: Tensor, shape: Sequence[int], **settings):
    """Compile a network by OpenVINO for inputs of `shape`, -1 where any size goes. settings: OpenVINO's, by name."""
    openvino = _import_openvino()
    with warnings.catch_warnings(), torch.no_grad(), _untold():
        warnings.simplefilter("ignore")  # torch calls tracing deprecated; it is what OpenVINO reads
        traced = torch.jit.trace(network.eval(), example, check_trace=False)
        converted = openvino.convert_model(traced, input=[openvino.PartialShape(list(shape))], example_input=example)
    # Pinned to cores, the threads of two processes would share the first core and leave the second idle.
    return openvino.Core().compile_model(converted, "CPU", {"ENABLE_CPU_PINNING": False} | settings)


class Request:
    """A compiled network, called with a tensor, as torch's are. Only one thread may use it at a time."""

    def __init__(self, compiled):
        self._request = compiled.create_infer_request()

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        """pictures float32 → the network's outputs, in its order."""
        openvino = _import_openvino()
        self._request.set_input_tensor(openvino.Tensor(pictures.contiguous().numpy(), shared_memory=True))
        self._request.infer()
        return [torch.from_numpy(tensor.data.copy()) for tensor in self._request.output_tensors]


def make_scorer(
    classifier: nn.Module, size: int, backend: str = "auto", precision: str = "auto"
) -> Callable[[Tensor], Tensor]:
    """A function (N, 3, size, size) → logits (N,) that computes what the classifier does, faster.

    precision: "bf16" where the processor computes with it, else "fp32"; "auto" is bf16 for a large network. A small
    one stays as it is, in torch and fp32: compiling it takes longer than it saves.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    device = next(classifier.parameters()).device
    large = sum(p.numel() for p in classifier.parameters()) >= LARGE
    chosen = choose_backend(backend if large or backend != "auto" else "torch", device)
    low = precision == "bf16" or (precision == "auto" and large)
    if chosen == "openvino":
        return _openvino_scorer(classifier, size, low)
    return _torch_scorer(classifier.to(memory_format=torch.channels_last), device, low)


def _openvino_scorer(classifier: nn.Module, size: int, low: bool) -> Callable[[Tensor], Tensor]:
    openvino = _import_openvino()
    able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = "bf16" if low and able else "f32"
    example, shape = torch.zeros(1, 3, size, size), (-1, 3, size, size)
    threads = torch.get_num_threads()  # a process that shares the machine was given its own number of them
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = compile_network(classifier, example, shape, **settings)
    request = Request(compiled)
    return lambda crops: request(crops)[0]


def _torch_scorer(classifier: nn.Module, device: torch.device, low: bool) -> Callable[[Tensor], Tensor]:
    able = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

    def score(crops: Tensor) -> Tensor:
        crops = crops.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=low and able):
            return classifier(crops)

    return score
