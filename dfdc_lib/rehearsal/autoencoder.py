"""The network behind the first deepfakes: one encoder, two decoders. Notebook 04 derives it.

The encoder sees both faces; each decoder draws one of them. From the code of one person's face, the
other's decoder draws its own person with the same pose and expression.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfdc_lib.blending import FACE, eyes_to_mouth, fit_to
from dfdc_lib.rehearsal.manipulate import region_mask
from dfdc_lib.rehearsal.people import PEOPLE, REACH, express, pose

SIDE = 64  # of the aligned square that it sees and draws, pixels, as in the first such tools
# Where the five landmarks lie in the square, which shows the face from brow to chin.
ALIGNED = FACE * (SIDE / 2.4) + (SIDE / 2, 0.55 * SIDE / 2.4)
WEIGHTS = Path(__file__).with_name("autoencoder.npz")  # by experiments/train_autoencoder.py


def align(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Cut a face out of (picture, landmarks), turned and scaled: (SIDE, SIDE, 3) uint8 RGB."""
    return fit_to(picture, landmarks, ALIGNED, SIDE, SIDE)


def face_weights() -> Tensor:
    """Which pixels of the square are face: (SIDE, SIDE) in [0, 1], soft at the edge."""
    return torch.from_numpy(region_mask(ALIGNED, SIDE, SIDE, "oval"))


def normalise(faces: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Turn aligned faces (N, SIDE, SIDE, 3) into (N, 3, SIDE, SIDE) with mean 0 and spread 1.

    Also returns the mean and spread (N, 3, 1, 1) of each one's skin, in levels of 0 to 1: applied
    to another face, they give it this one's light.
    """
    pictures = torch.from_numpy(faces).permute(0, 3, 1, 2) / 255
    weights = face_weights() / face_weights().sum()
    mean = (pictures * weights).sum(dim=(2, 3), keepdim=True)
    spread = ((pictures - mean).square() * weights).sum(dim=(2, 3), keepdim=True).sqrt()
    return (pictures - mean) / spread.clamp(min=1e-3), mean, spread  # a single colour: 0


def photograph(face: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Aligned pictures (n, SIDE, SIDE, 3) uint8 RGB of everyone with this face, posed and speaking.

    face: a name from LANDMARKS. As with a tracker, the alignment is a little off.
    """
    people = [identity for identity, (_, whose) in PEOPLE.items() if whose == face]
    pictures = []
    for number in range(n):
        picture, landmarks = pose(people[number % len(people)], rng)
        picture, landmarks = express(picture, landmarks, rng.normal(0, 0.5, 6) * [*REACH.values()])
        off = rng.normal(0, 0.015, (5, 2)) * eyes_to_mouth(landmarks)
        pictures.append(align(picture, landmarks + off))
    return np.stack(pictures)


def warp(faces: Tensor, generator: torch.Generator, reach: float = 0.06) -> Tensor:
    """Bend faces (N, 3, S, S): the points of a 5 x 5 grid move by about `reach` half sides."""
    n, _, *size = faces.shape
    push = torch.randn(n, 2, 5, 5, generator=generator) * reach
    push = nn.functional.interpolate(push, size, mode="bicubic", align_corners=True)
    still = nn.functional.affine_grid(torch.eye(2, 3).repeat(n, 1, 1), faces.shape, False)
    bent = still + push.permute(0, 2, 3, 1)
    return nn.functional.grid_sample(faces, bent, padding_mode="reflection", align_corners=False)


class Autoencoder(nn.Module):
    """One encoder and a decoder for each name in `decoders`; faces as `normalise` returns them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *halve(3, 24), *halve(24, 48), *halve(48, 64), *halve(64, 96),  # 96 maps of 4 x 4
            nn.Flatten(), nn.Linear(96 * 16, 128), nn.Linear(128, 96 * 16), nn.LeakyReLU(0.1),
            nn.Unflatten(1, (96, 4, 4)),
        )  # fmt: skip
        self.decoders = nn.ModuleDict({name: make_decoder() for name in ("collins", "hopper")})
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)

    def forward(self, faces: Tensor, name: str) -> Tensor:
        """Draw faces (N, 3, SIDE, SIDE) again, as the person of this name."""
        return self.decoders[name](self.encoder(faces))


def halve(inputs: int, outputs: int) -> list[nn.Module]:
    """Layers that halve the side of feature maps."""
    return [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), nn.LeakyReLU(0.1)]


def double(inputs: int, outputs: int) -> list[nn.Module]:
    """Layers that double the side of feature maps."""
    wide = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
    return [wide, nn.LeakyReLU(0.1), nn.PixelShuffle(2)]


def make_decoder() -> nn.Sequential:
    """From the code to a face."""
    last = nn.Conv2d(24, 3, 5, padding=2)
    return nn.Sequential(*double(96, 64), *double(64, 48), *double(48, 32), *double(32, 24), last)


@cache
def load_autoencoder() -> Autoencoder:
    """The trained network that comes with this package."""
    with torch.inference_mode(False), np.load(WEIGHTS, allow_pickle=False) as stored:
        with torch.device("meta"):  # draws no random weights
            network = Autoencoder().eval().requires_grad_(False)
        weights = {key: torch.from_numpy(value).float() for key, value in stored.items()}
        network.load_state_dict(weights, assign=True)
    return network


@torch.inference_mode()
def draw_as(name: str, faces: np.ndarray) -> np.ndarray:
    """Draw aligned faces (N, SIDE, SIDE, 3) uint8 RGB as another person, in their own light."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bytes in every process
    try:
        pictures, mean, spread = normalise(faces)
        drawn = load_autoencoder()(pictures, name) * spread + mean
    finally:
        torch.set_num_threads(threads)
    return (drawn.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
