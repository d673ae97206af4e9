"""MTCNN's cascade in batches: facenet-pytorch's networks, weights and arithmetic without its loops.

P-Net looks at every place of a pyramid of shrunk frames, R-Net at 24 x 24 pixels of what P-Net
proposes, O-Net at 48 x 48 of what R-Net keeps. facenet-pytorch spends three quarters of its time on
shrinking and cutting. Here both read a summed-area table: the sum over any rectangle takes four
look-ups, and the means are exactly those of facenet-pytorch's "area" resize.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from queue import SimpleQueue
from typing import NamedTuple

import cv2
import numba
import numpy as np
import torch
from facenet_pytorch.models import mtcnn as peer_networks
from facenet_pytorch.models.utils import detect_face as peer
from torch import Tensor, nn
from torchvision.ops import batched_nms

from dfdc_lib.config import SMALLEST_FACE
from dfdc_lib.fast.scorers import Request, choose_backend, compile_network

FACTOR = 0.709  # from level to level; facenet-pytorch's, as are the overlaps below
SIDES = {"PNet": 12, "RNet": 24, "ONet": 48}  # pixels of each network's window
CHUNK = {"cpu": 4, "cuda": 32}  # frames at once; on a CPU as many as fit its cache (measured)
BATCH = {"cpu": 64, "cuda": 2048}  # windows at once for R- and O-Net, at most
ROUND = 8  # … and a multiple of this, so that what was prepared for one shape can be reused
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, landmarks, as in faces.Faces


class Windows(NamedTuple):
    """What may still be a face, over all frames of a chunk."""

    frame: Tensor  # (n,) int64: which frame of the chunk
    boxes: Tensor  # (n, 4) float32: x0, y0, x1, y1 in pixels
    scores: Tensor  # (n,) float32 in [0, 1]
    offsets: Tensor  # (n, 4) float32: how far each side is off, as a share of the box

    def choose(self, chosen: Tensor) -> "Windows":
        return Windows(*(values[chosen] for values in self))

    def suppress(self, group: Tensor, overlap: float) -> "Windows":
        """Drop those that overlap a better one in their group (n,) by more than `overlap`."""
        return self.choose(batched_nms(self.boxes, self.scores, group, overlap))


class Cascade:
    """The three networks on a device. backend: as in `choose_backend`. threads: OpenVINO's."""

    def __init__(self, thresholds: Sequence[float], device: str, backend: str, threads: int):
        backend = choose_backend(backend, device)
        self.thresholds, self.device = thresholds, torch.device(device)
        self.chunk = CHUNK[self.device.type]
        self.threads = threads if backend == "openvino" else 1  # torch splits up each operation
        self._idle: SimpleQueue[list] = SimpleQueue()  # each entry serves one thread at a time
        for _ in range(self.threads):
            self._idle.put([self._load(name, backend) for name in SIDES])

    def _load(self, name: str, backend: str):
        if backend == "openvino":
            return Request(_compile(name, self.threads))
        return load_network(name).to(self.device, memory_format=torch.channels_last)

    def detect(self, frames: Sequence[np.ndarray]) -> list[Found]:
        """Find faces in equal frames (H, W, 3) uint8 RGB of SMALLEST_FACE pixels or more a side."""
        chunks = [frames[i : i + self.chunk] for i in range(0, len(frames), self.chunk)]
        if self.threads == 1 or len(chunks) == 1:
            return [faces for chunk in chunks for faces in self._detect_chunk(chunk)]
        with ThreadPoolExecutor(self.threads) as pool:
            return [faces for found in pool.map(self._detect_chunk, chunks) for faces in found]

    @torch.inference_mode()
    def _detect_chunk(self, frames: Sequence[np.ndarray]) -> list[Found]:
        networks = pnet, rnet, onet = self._idle.get()
        on_gpu = self.device.type == "cuda"
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps 10 bits
                table = TorchTable(frames, self.device) if on_gpu else SumTable(frames)
                windows = propose(table, pnet, self.thresholds[0])
                windows = refine(table, rnet, windows, self.thresholds[1])
                return conclude(table, onet, windows, self.thresholds[2])
        finally:
            self._idle.put(networks)


def load_network(name: str) -> nn.Module:
    """Load facenet-pytorch's "PNet", "RNet" or "ONet" with the weights in its wheel."""
    return getattr(peer_networks, name)().eval()


@cache
def _compile(name: str, threads: int):
    """Compile a network with OpenVINO for `threads` threads, each with windows of its own."""
    example = torch.zeros(1, 3, SIDES[name], SIDES[name])
    settings: dict = {"NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # in bfloat16 the boxes would move
    return compile_network(load_network(name), example, (-1, 3, -1, -1), **settings)


def pyramid_scales(height: int, width: int) -> list[float]:
    """The scales at which P-Net's 12 pixels cover faces of 20, 28, 40 and so on up to the frame."""
    scales, scale = [], SIDES["PNet"] / SMALLEST_FACE
    while min(height, width) * scale >= SIDES["PNet"]:
        scales.append(scale)
        scale *= FACTOR
    return scales


def propose(table: "SumTable", pnet, threshold: float) -> Windows:
    """Run P-Net at every place of every level; drop overlaps, by level and then over all."""
    found, scales = [], pyramid_scales(table.height, table.width)
    for level, scale in enumerate(scales):
        offsets, probs = pnet(table.shrink(scale))
        values, frame = peer.generateBoundingBox(offsets, probs[:, 1], scale, threshold)
        boxes, scores, offsets = values[:, :4], values[:, 4], values[:, 5:]
        found.append((frame, boxes, scores, offsets, frame * len(scales) + level))
    *parts, group = map(torch.cat, zip(*found, strict=True))
    windows = Windows(*parts).suppress(group, 0.5)
    windows = windows.suppress(windows.frame, 0.7)
    sides = (windows.boxes[:, 2:] - windows.boxes[:, :2]).repeat(1, 2)
    return windows._replace(boxes=peer.rerec(windows.boxes + windows.offsets * sides))


def refine(table: "SumTable", rnet, windows: Windows, threshold: float) -> Windows:
    """Run R-Net on 24 x 24 pixels of each window."""
    windows, _ = look_closer(table, rnet, windows, SIDES["RNet"], threshold)
    windows = windows.suppress(windows.frame, 0.7)
    return windows._replace(boxes=peer.rerec(peer.bbreg(windows.boxes, windows.offsets)))


def conclude(table: "SumTable", onet, windows: Windows, threshold: float) -> list[Found]:
    """Run O-Net on 48 x 48 pixels of each window: the faces of each frame."""
    windows, (points,) = look_closer(table, onet, windows, SIDES["ONet"], threshold)
    corner = windows.boxes[:, None, :2]
    sides = windows.boxes[:, None, 2:] - corner + 1
    landmarks = (corner + sides * points.reshape(-1, 2, 5).transpose(1, 2) - 1).cpu().numpy()
    windows = windows._replace(boxes=peer.bbreg(windows.boxes, windows.offsets))
    frame, boxes, scores, _ = (values.cpu().numpy() for values in windows)
    found = []
    for number in range(len(table)):
        faces = np.flatnonzero(frame == number)
        if len(faces):
            faces = faces[peer.nms_numpy(boxes[faces], scores[faces], 0.7, "Min")]
        found.append((boxes[faces], scores[faces], landmarks[faces]))
    return found


def look_closer(
    table: "SumTable", network, windows: Windows, side: int, threshold: float
) -> tuple[Windows, list[Tensor]]:
    """Run a network on side x side pixels of windows: those it keeps, and its other outputs."""
    corners = windows.boxes.trunc().to(torch.int64)
    low = corners[:, :2].clamp(min=1) - 1
    high = corners[:, 2:].minimum(corners.new_tensor([table.width, table.height]))
    inside = (low < high).all(dim=1)  # else there is nothing to see
    windows, corners = windows.choose(inside), torch.cat([low, high], dim=1)[inside]
    n_windows = len(corners)
    n_spare = -n_windows % ROUND if n_windows else ROUND
    corners = torch.cat([corners, corners.new_tensor([[0, 0, 1, 1]]).expand(n_spare, 4)])
    frame = nn.functional.pad(windows.frame, (0, n_spare))
    size = BATCH[corners.device.type]
    answers = []
    for i in range(0, len(corners), size):
        answers.append(network(table.cut(frame[i : i + size], corners[i : i + size], side, side)))
    answers = [torch.cat(values)[:n_windows] for values in zip(*answers, strict=True)]
    kept = answers[-1][:, 1] > threshold
    offsets, *more, probs = (values[kept] for values in answers)
    return windows.choose(kept)._replace(scores=probs[:, 1], offsets=offsets), more


class SumTable:
    """Sums over rectangles of equal frames, on a CPU. sums: (N, H + 1, W + 1, 3)."""

    def __init__(self, frames: Sequence[np.ndarray]):
        self.height, self.width = frames[0].shape[:2]
        self.device = torch.device("cpu")
        self.sums = np.empty((len(frames), self.height + 1, self.width + 1, 3), np.int32)
        for frame, sums in zip(frames, self.sums, strict=True):
            cv2.integral(frame, sums)
        # Sums over a large frame wrap around; their differences are still right.
        self._rows = self.sums.view(np.uint32).reshape(len(frames), self.height + 1, -1)

    def __len__(self) -> int:
        return len(self.sums)

    def shrink(self, scale: float) -> Tensor:
        """Shrink all frames: (N, 3, int(H scale + 1), int(W scale + 1)) float32 in [-1, 1]."""
        number = torch.arange(len(self), device=self.device)
        whole = number.new_tensor([[0, 0, self.width, self.height]]).expand(len(self), 4)
        return self.cut(number, whole, int(self.height * scale + 1), int(self.width * scale + 1))

    def cut(self, frame: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
        """Cut windows (n, 4) x0, y0, x1, y1 and resize them: (n, 3, height, width) in [-1, 1]."""
        windows: np.ndarray = np.empty((len(corners), 3, height, width), np.float32)
        _average(self._rows, frame.numpy(), corners.numpy(), windows)
        return torch.from_numpy(windows)


@numba.njit(nogil=True, cache=True)
def _average(sums, frame, corners, means):
    """Fill means (n, 3, h, w) with averages over the windows' cells."""
    # As in adaptive average pooling, cell i of m spans floor(i n / m) to ceil((i + 1) n / m).
    n_windows, _, height, width = means.shape
    left, right = np.empty(width, np.int64), np.empty(width, np.int64)
    weights = np.empty(width, np.float32)
    for n in range(n_windows):
        x0, y0, x1, y1 = corners[n]
        for j in range(width):
            left[j] = 3 * (x0 + j * (x1 - x0) // width)
            right[j] = 3 * (x0 - (-(j + 1) * (x1 - x0) // width))
            weights[j] = np.float32(3 / 128) / np.float32(right[j] - left[j])
        for i in range(height):
            upper, lower = y0 + i * (y1 - y0) // height, y0 - (-(i + 1) * (y1 - y0) // height)
            top, bottom = sums[frame[n], upper], sums[frame[n], lower]
            weight = np.float32(1) / np.float32(lower - upper)
            for j in range(width):
                for c in range(3):
                    low, high = left[j] + c, right[j] + c
                    total = np.float32(np.uint32(bottom[high] - bottom[low] - top[high] + top[low]))
                    means[n, c, i, j] = total * (weight * weights[j]) - np.float32(127.5 / 128)


class TorchTable(SumTable):
    """The same in torch: on a GPU the frames stay where the networks are."""

    def __init__(self, frames: Sequence[np.ndarray], device: torch.device):
        self.height, self.width = frames[0].shape[:2]
        self.device = device
        pictures = torch.from_numpy(np.stack(frames)).to(device)
        sums = pictures.permute(0, 3, 1, 2).to(torch.int64).cumsum(2).cumsum(3)  # (N, 3, H, W)
        self.sums = nn.functional.pad(sums, (1, 0, 1, 0)).permute(0, 2, 3, 1).contiguous()

    def cut(self, frame: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
        left, right = self._edges(corners[:, 0:1], corners[:, 2:3], width)
        top, bottom = self._edges(corners[:, 1:2], corners[:, 3:4], height)

        def look_up(y: Tensor, x: Tensor) -> Tensor:
            return self.sums[frame[:, None, None], y[:, :, None], x[:, None, :]]

        total = look_up(bottom, right) - look_up(bottom, left)
        total = total - look_up(top, right) + look_up(top, left)
        area = ((bottom - top)[:, :, None] * (right - left)[:, None, :])[..., None]
        return (total / (128 * area) - 127.5 / 128).permute(0, 3, 1, 2)

    def _edges(self, low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        number = torch.arange(cells, device=low.device)
        return low + number * (high - low) // cells, low - (-(number + 1) * (high - low) // cells)
