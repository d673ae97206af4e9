"""Every setting and preset, in one place. Profiles and notebook parameters only choose among these."""

from dataclasses import dataclass

# MTCNN's thresholds for its three stages. Source: upstream; strict for training crops, lenient when every face counts.
TRAIN_THRESHOLDS = (0.85, 0.95, 0.95)
INFERENCE_THRESHOLDS = (0.7, 0.8, 0.8)
THRESHOLDS = {"train": TRAIN_THRESHOLDS, "inference": INFERENCE_THRESHOLDS}


@dataclass(frozen=True)
class EncoderPreset:
    """An encoder and the input it is trained on."""

    timm_name: str
    size: int  # side of the square input, pixels
    batch: int  # pictures a GPU and step, as the slides state for B5 and B7
    drop_path: float = 0.2
    published_log_loss: float | None = None  # the slides' "Score" of a single model


ENCODERS = {
    "tiny": EncoderPreset("test_efficientnet", 112, 32, drop_path=0.0),
    "b3": EncoderPreset("tf_efficientnet_b3.ns_jft_in1k", 300, 16, published_log_loss=0.29),
    "b4": EncoderPreset("tf_efficientnet_b4.ns_jft_in1k", 380, 16, drop_path=0.5, published_log_loss=0.27),
    "b5": EncoderPreset("tf_efficientnet_b5.ns_jft_in1k", 380, 16, published_log_loss=0.25),
    "b6": EncoderPreset("tf_efficientnet_b6.ns_jft_in1k", 380, 12, published_log_loss=0.27),
    "b7": EncoderPreset("tf_efficientnet_b7.ns_jft_in1k", 380, 12, published_log_loss=0.24),
    "resnest50": EncoderPreset("resnest50d.in1k", 380, 16, drop_path=0.0),
    "resnest101": EncoderPreset("resnest101e.in1k", 380, 16, drop_path=0.0),
    "resnest200": EncoderPreset("resnest200e.in1k", 380, 12, drop_path=0.0),
}


def encoder_preset(name: str) -> EncoderPreset:
    """The preset of this name; for any other encoder that timm knows, one with its own input size.

    Raises ValueError for a name that neither knows.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    import timm

    if not timm.is_model(name):
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, or a model that timm knows, got {name!r}")
    return EncoderPreset(name, timm.get_pretrained_cfg(name).input_size[-1], 16, drop_path=0.0)


# How much around the face, as the slides, upstream's README and upstream's code have it. The released weights go with
# the last, "upstream": see geometry.add_margin.
MARGINS = {"slides": 0.2, "readme": 0.3, "upstream": "upstream"}
DETECT_METHOD = 3  # raise it when the same settings would give other boxes, landmarks or face_idx
BACKENDS = ("auto", "torch", "openvino")  # what computes a trained network: see inference.py
PRECISIONS = ("auto", "fp32", "bf16")
MIXED_PRECISIONS = ("no", "fp16", "bf16")  # of training
BLACKOUTS = ("hard", "upstream")  # the slides', blackouts and a grid (ours); upstream: no grid, one way to resize
AUGMENTATION_NAMES = ("slides", *BLACKOUTS, "demo")  # see augment.py
# From a frame to crops, before a score. "slides": the detector's input by the frame's size, the checkpoint's own
# margin. "upstream", with which the released weights go: halved by Pillow, whole pixels, a third of them as margin.
PROCEDURES = ("slides", "upstream")
STAGES = ("detect", "crop", "masks", "folds")  # of preprocessing, in their order


def check_margin(margin) -> None:
    """Raise ValueError for what is no margin."""
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and 0 <= margin <= 100
    if margin != "upstream" and not number:
        raise ValueError(f'margin must be a number, 0 to 100, or "upstream", got {str(margin)[:80]}')


def check_thresholds(thresholds) -> None:
    """Raise ValueError for what are no thresholds of MTCNN's three stages."""
    if len(thresholds) != 3 or not all(0 <= value <= 1 for value in thresholds):
        raise ValueError(f"thresholds are three numbers from 0 to 1, got {thresholds}")


@dataclass(frozen=True)
class PreprocessConfig:
    """From videos to crops, masks and folds."""

    every: int = 10  # detect and crop on every n-th frame
    thresholds: tuple[float, float, float] = TRAIN_THRESHOLDS
    margin: float | str = MARGINS["slides"]  # share of the box kept around it, each side, or "upstream"
    folds: int = 16  # at most so many; upstream cuts its 50 parts into 16

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        check_margin(self.margin)
        check_thresholds(self.thresholds)
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")

    @classmethod
    def from_source(cls, source: dict) -> "PreprocessConfig":
        """The settings of a work folder, from its source.json. Raises KeyError, TypeError or ValueError for others."""
        settings = source["settings"]
        folds = source.get("folds", cls.folds)
        return cls(settings["every"], tuple(settings["thresholds"]), settings.get("margin", cls.margin), folds)

    def of_stage(self, stage: str) -> dict:
        """The settings that a stage's artifacts depend on: its own and those of the stages before it."""
        detect = {"method": DETECT_METHOD, "every": self.every, "thresholds": list(self.thresholds)}
        crop = detect | {"margin": self.margin}
        return {"detect": detect, "crop": crop, "masks": crop}[stage]


@dataclass(frozen=True)
class PredictConfig:
    """From a video to a verdict. The defaults are the slides'."""

    frames: int = 32  # spread evenly over the video; a shorter one gives all it has
    strategy: str = "confident"  # a name from aggregate.STRATEGIES
    procedure: str = ""  # a name from PROCEDURES; "": the one that the checkpoints go with

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"at least one frame must be looked at, got {self.frames}")
        if self.procedure not in ("", *PROCEDURES):
            raise ValueError(f"procedure must be one of {', '.join(PROCEDURES)}, got {self.procedure!r}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the slides'; `DEMO_TRAINING` is what two CPU cores learn the sample with."""

    encoder: str = "b5"
    steps: int = 75_000  # slides: 2,500 iterations an epoch, 75,000 in all
    epoch_steps: int = 2_500
    batch: int = 16  # pictures a process and step
    accumulate: int = 1  # parts that a batch is cut into where memory is short; the gradient stays the whole batch's
    size: int = 0  # side of the square input, pixels; 0: the encoder's own
    optimizer: str = "sgd"  # "sgd": momentum 0.9, Nesterov, PolyLR · "adamw": one-cycle
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    smoothing: float = 0.01  # slides: labels become 0.01 and 0.99
    paired: bool = False  # each real crop beside its own fake, both augmented alike
    augmentation: str = "slides"  # a name from AUGMENTATION_NAMES
    self_blend: float = 0.0  # how often a real crop becomes its own fake (arXiv 2204.08376); the slides: never
    fold: int = 0  # the fold held out for validation
    seed: int = 0
    precision: str = "no"  # mixed precision: "no", "fp16" or "bf16"
    freeze_batchnorm: bool = False  # keep the encoder's running statistics, as fine-tuning on small batches may want
    valid_every: int = 20  # validate on every n-th frame, as upstream does

    def __post_init__(self):
        choices = {
            "optimizer": ("sgd", "adamw"),
            "augmentation": AUGMENTATION_NAMES,
            "precision": MIXED_PRECISIONS,
        }
        encoder_preset(self.encoder)
        for field, valid in choices.items():
            if getattr(self, field) not in valid:
                raise ValueError(f"{field} must be one of {', '.join(valid)}, got {getattr(self, field)!r}")
        for field in ("steps", "epoch_steps", "batch", "valid_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.size < 0 or not 1 <= self.accumulate <= self.batch:
            raise ValueError(f"size {self.size} must be 0 or more, accumulate {self.accumulate} from 1 to the batch")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing must be 0 or more and below 0.5, got {self.smoothing}")
        if not 0 <= self.self_blend <= 1 or (self.self_blend == 1 and not self.paired):
            raise ValueError(f"self_blend is a probability, and below 1 unless crops are paired, got {self.self_blend}")
        if self.paired and self.batch % 2:
            raise ValueError(f"a batch of pairs must be even, got {self.batch}")
        if self.paired and self.augmentation in BLACKOUTS:
            raise ValueError("pairs are not blacked out: choose augmentation slides or demo")

    @property
    def input_size(self) -> int:
        """The side of the square input, pixels."""
        return self.size or encoder_preset(self.encoder).size


DEMO_TRAINING = TrainConfig(
    encoder="tiny", steps=450, epoch_steps=90, batch=32, optimizer="adamw", learning_rate=3e-3, weight_decay=0.02,
    smoothing=0.05, paired=True, augmentation="demo", valid_every=1,
)  # fmt: skip
