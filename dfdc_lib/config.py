"""Every setting and preset. Notebooks, their profiles and the command line choose among these."""

from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

# Upstream's thresholds for MTCNN's three networks.
TRAIN_THRESHOLDS = (0.85, 0.95, 0.95)  # strict: only good crops
INFERENCE_THRESHOLDS = (0.7, 0.8, 0.8)  # lenient: every face counts
SMALLEST_FACE = 20  # pixels, as in facenet-pytorch; smaller frames are skipped


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class EncoderPreset:
    """An encoder and the input it is trained on."""

    timm_name: str
    size: int  # side of the square input, pixels
    batch: int  # pictures per GPU and step, as the slides state for B5 and B7
    drop_path: float = 0.2
    published_log_loss: float | None = None  # the slides' "Score" of a single model


ENCODERS = {
    "tiny": EncoderPreset("test_efficientnet", 112, 32, 0.0),
    "lite0": EncoderPreset("tf_efficientnet_lite0.in1k", 224, 32, 0.0),
    "lite1": EncoderPreset("tf_efficientnet_lite1.in1k", 240, 32, 0.0),
    "lite2": EncoderPreset("tf_efficientnet_lite2.in1k", 260, 32, 0.0),
    "b3": EncoderPreset("tf_efficientnet_b3.ns_jft_in1k", 300, 16, 0.2, 0.29),
    "b4": EncoderPreset("tf_efficientnet_b4.ns_jft_in1k", 380, 16, 0.5, 0.27),
    "b5": EncoderPreset("tf_efficientnet_b5.ns_jft_in1k", 380, 16, 0.2, 0.25),
    "b6": EncoderPreset("tf_efficientnet_b6.ns_jft_in1k", 380, 12, 0.2, 0.27),
    "b7": EncoderPreset("tf_efficientnet_b7.ns_jft_in1k", 380, 12, 0.2, 0.24),
    "resnest50": EncoderPreset("resnest50d.in1k", 380, 16, 0.0),
    "resnest101": EncoderPreset("resnest101e.in1k", 380, 16, 0.0),
    "resnest200": EncoderPreset("resnest200e.in1k", 380, 12, 0.0),
}


def encoder_preset(name: str) -> EncoderPreset:
    """Return the preset of this name, or make one for any other encoder that timm knows."""
    if name in ENCODERS:
        return ENCODERS[name]
    import timm
    from timm.models import get_deprecated_models

    known = f"{', '.join(ENCODERS)}, or a model that timm knows"
    _require(timm.is_model(name), f"encoder must be one of {known}, got {name!r}")
    name = get_deprecated_models().get(name, name)  # tf_efficientnet_b7_ns has a longer name now
    return EncoderPreset(name, timm.get_pretrained_cfg(name).input_size[-1], 16, drop_path=0.0)


Backend = Literal["auto", "torch", "openvino"]  # what runs a trained network: fast/scorers.py
Optimizer = Literal["sgd", "adamw"]  # momentum 0.9, Nesterov, PolyLR · one-cycle
Precision = Literal["auto", "fp32", "fp16", "bf16"]
MixedPrecision = Literal["no", "fp16", "bf16"]  # for training
Augmentation = Literal["slides", "hard", "upstream", "demo", "transfer", "none"]
BLACKOUTS = ("hard", "upstream")
# How faces are found and cut. "slides": frames resized by the slides' rule, the checkpoint's own
# margin. "upstream": halved by Pillow, MARGINS["upstream"]. "": as the checkpoints need it.
Procedure = Literal["", "slides", "upstream"]
PROCEDURES = ("slides", "upstream")
Stage = Literal["detect", "crop", "masks", "folds"]  # of preprocessing, in order
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Margin:
    """How much of the frame around a face's box a crop keeps. Notebook 03 derives it.

    In JSON and on the command line it is one word: a number, or a name from MARGINS.
    """

    share: float  # of the box's width and height, on each side
    whole_pixels: bool = False  # truncate box and margin to whole pixels, as upstream's code does

    def __post_init__(self):
        _require(0 <= self.share <= 100, f"a margin is 0 to 100 times the box, got {self.share}")

    @classmethod
    def parse(cls, word: str | float) -> "Margin":
        """The margin that a word stands for. Raises ValueError for any other word."""
        if isinstance(word, str) and word in MARGINS:
            return MARGINS[word]
        try:
            return cls(float(word))
        except (TypeError, ValueError):
            names, got = ", ".join(MARGINS), repr(str(word)[:80])
            raise ValueError(f"a margin is a number or one of {names}, got {got}") from None

    def __str__(self) -> str:
        return "upstream" if self == MARGINS["upstream"] else str(self.share)


MARGINS = {"slides": Margin(0.2), "readme": Margin(0.3)}  # "readme": upstream's
MARGINS["upstream"] = Margin(1 / 3, whole_pixels=True)  # its code's; the released weights need it


@dataclass(frozen=True)
class PreprocessConfig:
    """The settings that determine a work folder's crops and masks: its recipe."""

    every: int = 10  # sample every n-th frame
    thresholds: tuple[float, float, float] = TRAIN_THRESHOLDS  # how sure MTCNN's networks must be
    margin: Margin = MARGINS["slides"]  # how much to keep around a face's box

    def __post_init__(self):
        _require(self.every >= 1, f"every must be at least 1, got {self.every}")
        valid = len(self.thresholds) == 3 and all(0 <= value <= 1 for value in self.thresholds)
        _require(valid, f"thresholds are three numbers from 0 to 1, got {self.thresholds}")

    def to_json(self) -> dict:
        """The settings as a recipe stores them."""
        return asdict(self) | {"thresholds": list(self.thresholds), "margin": str(self.margin)}

    @classmethod
    def from_json(cls, settings: dict) -> "PreprocessConfig":
        """Undo `to_json`."""
        margin = Margin.parse(settings["margin"])
        return cls(settings["every"], tuple(settings["thresholds"]), margin)


@dataclass(frozen=True)
class PredictConfig:
    """From a video to a verdict. The defaults are the slides'."""

    frames: int = 32  # how many, spread evenly over the video; a shorter one gives all it has
    strategy: str = "confident"  # how scores are joined: mean, median, … (aggregate.STRATEGIES)
    procedure: Procedure = ""  # how faces are found and cut; default: as the checkpoints need it
    backend: Backend = "auto"  # what computes the scores
    precision: Precision = "auto"  # of the arithmetic that computes the scores
    every_seconds: float = 0.0  # also score each window of this length, for long videos; 0: off

    def __post_init__(self):
        _require(self.frames >= 1, f"frames must be at least 1, got {self.frames}")
        told = f"every_seconds must be 0 (the whole video) or more, got {self.every_seconds}"
        _require(self.every_seconds >= 0, told)
        check_choices(self, procedure=Procedure, backend=Backend, precision=Precision)


def check_choices(config, **choices) -> None:
    """Raise ValueError if a field of a configuration isn't one of its Literal's words."""
    for name, words in choices.items():
        value, valid = getattr(config, name), ", ".join(filter(None, get_args(words)))
        _require(value in get_args(words), f"{name} must be one of {valid}, got {value!r}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the slides'; `--preset` chooses others."""

    encoder: str = "b5"  # a name from ENCODERS (lite0, b3 to b7, …), or any that timm knows
    steps: int = 75_000  # how many in total; the learning rate falls over them
    epoch_steps: int = 2_500  # steps from one validation to the next
    batch: int = 16  # pictures per process and step
    accumulate: int = 1  # parts that a batch is split into when memory is short
    size: int = 0  # side of the square input, pixels; 0: the encoder's own
    optimizer: Optimizer = "sgd"  # sgd: momentum 0.9, Nesterov, PolyLR · adamw: one-cycle
    learning_rate: float = 0.01  # its highest value
    weight_decay: float = 1e-4  # on all weights
    smoothing: float = 0.01  # labels become this and 1 minus this
    paired: bool = False  # each real crop beside its own fake, both augmented alike
    augmentation: Augmentation = "slides"  # hard: with blackouts and a grid · upstream: no grid
    self_blend: float = 0.0  # how often a real crop becomes its own fake (arXiv 2204.08376)
    fold: int = 0  # the fold held out for validation
    seed: int = 0  # for weights, order and augmentation: what an ensemble's members differ in
    precision: MixedPrecision = "no"  # mixed precision to train in
    freeze_batchnorm: bool = False  # keep the encoder's running statistics fixed
    valid_every: int = 20  # validate on every n-th frame, as upstream does

    def __post_init__(self):
        encoder_preset(self.encoder)
        check_choices(self, optimizer=Optimizer, precision=MixedPrecision)
        check_choices(self, augmentation=Augmentation)
        for field in ("steps", "epoch_steps", "batch", "valid_every"):
            value = getattr(self, field)
            _require(value >= 1, f"{field} must be at least 1, got {value}")
        _require(self.size >= 0, f"size must be 0 or more, got {self.size}")
        parts = f"accumulate must be from 1 to the batch, got {self.accumulate}"
        _require(1 <= self.accumulate <= self.batch, parts)
        _require(0 <= self.smoothing < 0.5, f"smoothing must be in [0, 0.5), got {self.smoothing}")
        allowed = 0 <= self.self_blend < 1 or (self.self_blend == 1 and self.paired)
        bounds = "must be a probability, below 1 unless crops are paired"
        _require(allowed, f"self_blend {bounds}, got {self.self_blend}")
        if self.paired:
            _require(self.batch % 2 == 0, f"a batch of pairs must be even, got {self.batch}")
            plain = "pairs can't be blacked out: choose augmentation slides or demo"
            _require(self.augmentation not in BLACKOUTS, plain)

    @property
    def input_size(self) -> int:
        """The side of the square input, pixels."""
        return self.size or encoder_preset(self.encoder).size


DEMO_TRAINING = TrainConfig(  # with lite0's pretrained weights
    encoder="lite0",
    steps=75,
    epoch_steps=25,
    batch=32,
    size=128,
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=0.02,
    smoothing=0.05,
    paired=True,
    augmentation="demo",
    valid_every=1,
)
TRANSFER_TRAINING = replace(  # chosen by experiments/transfer.py
    DEMO_TRAINING, steps=150, epoch_steps=150, size=192, self_blend=0.5, augmentation="transfer"
)
Preset = Literal["slides", "demo", "transfer"]
# slides: DFDC, for days; demo: the sample, a minute; transfer: the sample, for other videos.
PRESETS = {"slides": TrainConfig(), "demo": DEMO_TRAINING, "transfer": TRANSFER_TRAINING}
