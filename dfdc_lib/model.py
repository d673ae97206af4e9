"""The classifier: a timm encoder, an average and one logit. And the checkpoints that hold it."""

import pickle
import struct
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dfdc_lib.config import ENCODERS, MARGINS, PROCEDURES, EncoderPreset, check_margin, encoder_preset
from dfdc_lib.inference import make_scorer
from dfdc_lib.paths import appear_whole, show

# What torch.load raises for a file that is none of its own, or not whole.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, OSError, ValueError,
    ArithmeticError, AssertionError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint must know to be used rightly. Raises ValueError for what no checkpoint of ours says."""

    encoder: str  # a name from config.ENCODERS, or timm's
    size: int  # side of the square input, pixels
    margin: float | str = MARGINS["slides"]  # of the crops that it was trained on
    trained_on: str = "nothing"  # "nothing", "sample" or the data folder's name
    procedure: str = "slides"  # how its faces are found and cut: a name from config.PROCEDURES

    def __post_init__(self):
        for name in (self.encoder, self.trained_on):
            if not isinstance(name, str):
                raise ValueError(f"encoder and trained_on are names, got {show(name)}")
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise ValueError(f"size is a number of pixels, at most 4096, got {show(self.size)}")
        if self.procedure not in PROCEDURES:
            raise ValueError(f"procedure is one of {', '.join(PROCEDURES)}, got {show(self.procedure)}")
        check_margin(self.margin)


class DeepfakeClassifier(nn.Module):
    """Logit of "fake" for a batch of crops. encoder: a name from `config.ENCODERS`, or any that timm knows.

    As upstream: encoder features, global average pool, one linear output. pretrained: start from weights of ImageNet,
    from timm's hub (True; where it can't be reached a line says so and the weights are random), from a file, or from a
    folder that holds <timm name>.safetensors, .pth or .bin.
    """

    def __init__(self, encoder: str, pretrained: bool | Path | str = False):
        super().__init__()
        preset = encoder_preset(encoder)
        self.card = ModelCard(encoder, preset.size)
        self.encoder = create_encoder(preset, pretrained)
        self.features = nn.Identity()  # changes nothing; a place where Grad-CAM can listen
        self.fc = nn.Linear(self.encoder.num_features, 1)
        self._how: tuple[str, str] | None = None  # backend and precision, once `speed_up` was asked for
        self._scorer: Callable[[Tensor], Tensor] | None = None

    def forward(self, crops: Tensor) -> Tensor:
        """crops (N, 3, S, S) normalised → logits (N,)."""
        features = self.features(self.encoder.forward_features(crops))  # (N, C, S/32, S/32)
        pooled = features.mean(dim=(2, 3))  # (N, C)
        return self.fc(pooled).squeeze(1)

    @torch.inference_mode()
    def predict(self, crops: Tensor) -> Tensor:
        """crops (N, 3, S, S) normalised → p_fake (N,) on the CPU, in fp32 unless `speed_up` was asked for."""
        self.eval()
        if self._how and self._scorer is None:
            with torch.inference_mode(False):  # weights that it lays out anew must stay ones that can learn
                self._scorer = make_scorer(self, self.card.size, *self._how)
        logits = self._scorer(crops) if self._scorer else self(crops.to(self.fc.weight.device))
        return logits.float().sigmoid().cpu()

    def speed_up(self, backend: str = "auto", precision: str = "auto") -> "DeepfakeClassifier":
        """Let `predict` compute as `inference.make_scorer` says, from its first call on. Returns the model.

        Training forgets it; other weights or another device make it compile again.
        """
        self._how, self._scorer = (backend, precision), None
        return self

    def load_state_dict(self, *args, **kwargs):
        """As any module's."""
        self._scorer = None
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args, **kwargs):  # what .to(), .half() and their like come down to
        self._scorer = None
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> "DeepfakeClassifier":
        """As any module's. A model that learns is computed as it stands."""
        if mode:
            self._how = self._scorer = None
        return super().train(mode)


class Cost(NamedTuple):
    """What a classifier costs for one picture."""

    parameters: int
    macs: int  # multiplications with an addition, forward
    kept_bytes: int  # of activations, which training keeps for the way back, in 32 bits


def cost_of(encoder: str, size: int = 0) -> Cost:
    """Count a classifier's cost for a picture of `size` pixels (0: the encoder's own), without computing anything.

    Tensors on the device "meta" have a shape and no content: a B7 is counted in a second, and needs no memory.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size = size or encoder_preset(encoder).size
    with torch.device("meta"):
        model, pair = DeepfakeClassifier(encoder), torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(pair)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model.train()(pair)  # held, and with it what is kept: else storages would be counted as one
    activations = sum(n_bytes for storage, n_bytes in kept.items() if storage not in own)
    # The counter calls a multiplication and its addition two operations.
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 4, activations // len(logits))


def create_encoder(preset: EncoderPreset, pretrained: bool | Path | str) -> nn.Module:
    """A timm encoder without its classifier, with random or pretrained weights."""
    import timm

    make = partial(timm.create_model, preset.timm_name, drop_path_rate=preset.drop_path, num_classes=0)
    if pretrained is not True:
        encoder = make(pretrained=False)
        if pretrained:
            load_pretrained_file(encoder, Path(pretrained), preset.timm_name)
        return encoder
    try:
        return make(pretrained=True)
    except (OSError, RuntimeError) as error:  # no network; or timm has no weights for this one
        print(f"no pretrained weights for {preset.timm_name} ({type(error).__name__}): starting from random ones")
        return make(pretrained=False)


def load_pretrained_file(encoder: nn.Module, path: Path, timm_name: str) -> None:
    """Load ImageNet's weights from a file, or from the file of the encoder's name in a folder. All keys must fit."""
    if path.is_dir():
        names = [f"{timm_name}{suffix}" for suffix in (".safetensors", ".pth", ".bin")]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        raise FileNotFoundError(f"no pretrained weights: {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = read_weights(path)
        weights = weights.get("state_dict", weights)
    load_strictly(encoder, {k: v for k, v in weights.items() if not k.startswith("classifier.")}, path)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that fit exactly. Raises ValueError that names the keys that do not."""
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    unlike = [k for k in wanted.keys() & weights.keys() if wanted[k].shape != weights[k].shape]
    if missing or extra or unlike:
        told = [f"{len(keys)} {what}, such as {', '.join(keys[:3])}" for what, keys in
                (("missing", missing), ("unknown", extra), ("of another shape", sorted(unlike))) if keys]  # fmt: skip
        raise ValueError(f"{path} does not fit its model: {'; '.join(told)}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # tensors of a kind that can't be copied
        raise ValueError(f"{path} does not fit its model: {error}") from error


def read_weights(path: Path) -> dict:
    """Read a file of tensors and plain values; nothing in it is executed. Raises ValueError for anything else.

    Old files may hold a numpy number (upstream's best loss), so its building blocks are allowed by name.
    """
    numpy_number = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np._core.multiarray.scalar]
    numpy_number.append((np._core.multiarray.scalar, "numpy.core.multiarray.scalar"))  # its name before numpy 2
    try:
        with torch.serialization.safe_globals(numpy_number), warnings.catch_warnings(action="ignore"):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(stored).__name__}")
    return stored


def save_checkpoint(path: Path, model: DeepfakeClassifier, training: dict | None = None) -> None:
    """Write weights and card, whole or not at all; with `training`, also what a run needs to go on."""
    stored = {"card": asdict(model.card), "state_dict": model.state_dict()}
    with appear_whole(path) as temporary:
        torch.save(stored | ({"training": training} if training else {}), temporary)


def load_checkpoint(path: Path) -> DeepfakeClassifier:
    """Load a checkpoint that `save_checkpoint` wrote, or one that upstream released, ready to predict.

    Only tensors and plain values are read: nothing in the file is executed. Raises FileNotFoundError, or ValueError
    that names the file and what is wrong with it.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if not Path(path).is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device: name a checkpoint's file, such as best.pt of a run")
    stored = read_weights(path)
    if "state_dict" not in stored:
        raise ValueError(f"{path} is not a checkpoint of this project or of upstream: it lacks 'state_dict'")
    weights = stored["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is not a checkpoint of this project or of upstream: no tensors in its 'state_dict'")
    if "card" in stored:
        try:
            card = ModelCard(**stored["card"])
            encoder_preset(card.encoder)
        except UNREADABLE as error:
            raise ValueError(f"{path} has a card that can't be used: {error}") from error
    else:
        weights, card = adopt_upstream(weights, path)
    model = DeepfakeClassifier(card.encoder)
    load_strictly(model, weights, path)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ValueError(f"{path} holds weights that are no numbers: its training went astray; take an earlier one")
    model.card = card
    return model.eval()


def adopt_upstream(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Weights with upstream's names, as ours, and the card that goes with them.

    Upstream's keys begin with `module.`, and its encoder kept ImageNet's classifier, which it never used. Which
    encoder it is follows from the number of features; its faces are found and cut as upstream's code does.
    """
    weights = {k.removeprefix("module."): v.float() if v.is_floating_point() else v for k, v in weights.items()}
    weights = {k: v for k, v in weights.items() if not k.startswith("encoder.classifier.")}
    features = {1536: "b3", 1792: "b4", 2048: "b5", 2304: "b6", 2560: "b7"}
    head = weights.get("fc.weight")
    if head is None or tuple(head.shape[:1]) != (1,) or head.shape[1] not in features:
        raise ValueError(f"{path} is not a checkpoint of this project or of upstream: no fc.weight of B3 to B7")
    encoder = features[head.shape[1]]
    return weights, ModelCard(encoder, ENCODERS[encoder].size, "upstream", trained_on="dfdc", procedure="upstream")
