"""What a classifier costs, counted without computing anything."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dfdc_lib.config import encoder_preset
from dfdc_lib.model import DeepfakeClassifier


class Cost(NamedTuple):
    """What a classifier costs for one picture."""

    parameters: int
    macs: int  # multiplications with an addition, forward
    kept_bytes: int  # of activations, which training keeps for the way back, in 32 bits


def cost_of(encoder: str, size: int = 0) -> Cost:
    """Count a classifier's cost for a picture of `size` pixels (0: the encoder's own).

    Tensors on the device "meta" have a shape and no content: a B7 is counted in a second, and needs
    no memory.
    """
    size = size or encoder_preset(encoder).size
    with torch.device("meta"):
        model, pair = DeepfakeClassifier(encoder), torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(pair)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # What is kept lives as long as the logits; else storages would be counted as one.
        logits = model.train()(pair)
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    parameters = sum(p.numel() for p in model.parameters())
    # The counter calls a multiplication and its addition two operations.
    return Cost(parameters, counter.get_total_flops() // 4, sum(kept.values()) // len(logits))
