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
    macs: int  # multiplications with an addition, in the forward pass
    kept_bytes: int  # of activations, which training keeps for the backward pass, in 32 bits


def cost_of(encoder: str, size: int = 0) -> Cost:
    """Count a classifier's cost for a picture of `size` pixels (0: the encoder's own).

    Tensors on the device "meta" have a shape but no content: counting a B7 takes a second and no
    memory.
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
        # The logits keep all of it alive; a freed address would be reused, and counted once.
        logits = model.train()(pair)
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    parameters = sum(p.numel() for p in model.parameters())
    # The counter counts a multiplication and its addition as two operations.
    return Cost(parameters, counter.get_total_flops() // 4, sum(kept.values()) // len(logits))
