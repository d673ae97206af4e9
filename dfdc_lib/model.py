"""The classifier: a timm encoder, an average, a dropout and one logit. And the checkpoints that hold it."""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dfdc_lib.config import ENCODERS
from dfdc_lib.paths import appear_whole


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint must know to be used rightly."""

    encoder: str  # a name from config.ENCODERS
    size: int  # side of the square input, pixels
    margin: float | str = 0.2  # of the crops that it was trained on
    trained_on: str = "nothing"  # "nothing", "sample" or the data folder's name


class DeepfakeClassifier(nn.Module):
    """Logit of "fake" for a batch of crops. encoder: a name from `config.ENCODERS`.

    As upstream: encoder features, global average pool, dropout (0 unless given), one linear output.
    """

    def __init__(self, encoder: str, pretrained: bool = False, dropout: float = 0.0):
        super().__init__()
        import timm

        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
        preset = ENCODERS[encoder]
        self.card = ModelCard(encoder, preset.size)
        self.encoder = timm.create_model(preset.timm_name, pretrained=pretrained, drop_path_rate=preset.drop_path)
        self.encoder.reset_classifier(0)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.encoder.num_features, 1)

    def forward(self, crops: Tensor) -> Tensor:
        """crops (N, 3, S, S) normalised → logits (N,)."""
        features = self.encoder.forward_features(crops)  # (N, C, S/32, S/32)
        pooled = features.mean(dim=(2, 3))  # (N, C)
        return self.fc(self.dropout(pooled)).squeeze(1)

    @torch.inference_mode()
    def predict(self, crops: Tensor) -> Tensor:
        """crops (N, 3, S, S) normalised → p_fake (N,) on the CPU."""
        self.eval()
        device = self.fc.weight.device
        return self(crops.to(device)).sigmoid().float().cpu()


def save_checkpoint(path: Path, model: DeepfakeClassifier) -> None:
    """Write weights and card, whole or not at all."""
    with appear_whole(path) as temporary:
        torch.save({"card": asdict(model.card), "state_dict": model.state_dict()}, temporary)


def load_checkpoint(path: Path) -> DeepfakeClassifier:
    """Load a checkpoint that `save_checkpoint` wrote, ready to predict.

    Only tensors and plain values are read: nothing in the file is executed. Raises FileNotFoundError, or ValueError
    that names the file and what is wrong with it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    if not isinstance(stored, dict) or not {"card", "state_dict"} <= set(stored):
        raise ValueError(f"{path} is not a checkpoint of this project: it lacks 'card' or 'state_dict'")
    try:
        card = ModelCard(**stored["card"])
        model = DeepfakeClassifier(card.encoder)
        model.load_state_dict(stored["state_dict"], strict=True)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit its model: {error}") from error
    model.card = card
    return model.eval()
