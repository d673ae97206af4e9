"""MTCNN's cascade in batches: the networks, weights and arithmetic of facenet-pytorch, without its loops.

Three networks look at ever fewer windows, ever more closely: P-Net at every place of a pyramid of shrunk frames, R-Net
at 24 x 24 pixels of what P-Net proposes, O-Net at 48 x 48 of what R-Net keeps. In the peer the networks take a quarter
of the time, and the rest goes to shrinking and cutting. Here both are read off one summed-area table a frame: the sum
over any rectangle is four look-ups, whatever its size, and the means are exactly those of the peer's "area" resize.
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
from torch import Tensor, nn
from torchvision.ops import batched_nms

from dfdc_lib.inference import Request, choose_backend, compile_network

SMALLEST_FACE = 20  # pixels; this, the factor and the overlaps below are the peer's (MTCNN's own defaults)
FACTOR = 0.709  # from one level of the pyramid to the next
SIDES = {"PNet": 12, "RNet": 24, "ONet": 48}  # pixels of the window that each network judges
CELL, STRIDE = SIDES["PNet"], 2  # … and the step from one of P-Net's to the next, in pixels of a level
CHUNK = {"cpu": 4, "cuda": 32}  # frames at once; a CPU wants what fits its cache (measured)
BATCH = {"cpu": 64, "cuda": 2048}  # windows that R- or O-Net is given at once, at most
ROUND = 8  # … and always a multiple of these: few shapes, so that what was prepared for one serves again

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a frame: boxes (n, 4), scores (n,), landmarks (n, 5, 2)


class Windows(NamedTuple):
    """What may still be a face, over all frames of a chunk."""

    frame: Tensor  # (n,) int64: which frame of the chunk
    boxes: Tensor  # (n, 4) float32: x0, y0, x1, y1 in pixels
    scores: Tensor  # (n,) float32 in [0, 1]

    def choose(self, chosen: Tensor) -> "Windows":
        return Windows(*(values[chosen] for values in self))


class Cascade:
    """The three networks on a device. backend: as in `inference.choose_backend`. threads: of OpenVINO's.

    They compute in float32: in bfloat16 the boxes move.
    """

    def __init__(self, thresholds: Sequence[float], device: str, backend: str, threads: int):
        backend = choose_backend(backend, device)
        self.thresholds, self.device = thresholds, torch.device(device)
        self.chunk = CHUNK[self.device.type]
        self.threads = threads if backend == "openvino" else 1  # torch shares out every operation by itself
        self._idle: SimpleQueue[list] = SimpleQueue()  # each entry serves one thread at a time
        for _ in range(self.threads):
            self._idle.put([self._load(name, backend) for name in SIDES])

    def _load(self, name: str, backend: str):
        if backend == "openvino":
            return Request(_compile(name, self.threads))
        return load_network(name).to(self.device, memory_format=torch.channels_last)

    def detect(self, frames: Sequence[np.ndarray]) -> list[Found]:
        """Find the faces in frames of equal size, each (H, W, 3) uint8 RGB, in pixels of the frame."""
        chunks = [frames[i : i + self.chunk] for i in range(0, len(frames), self.chunk)]
        if self.threads == 1 or len(chunks) == 1:
            found = map(self._detect_chunk, chunks)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(self._detect_chunk, chunks))
        return [faces for chunk in found for faces in chunk]

    @torch.inference_mode()
    def _detect_chunk(self, frames: Sequence[np.ndarray]) -> list[Found]:
        networks = pnet, rnet, onet = self._idle.get()
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else GPUs round float32 to 10 bits
                table = TorchTable(frames, self.device) if self.device.type == "cuda" else SumTable(frames)
                windows = propose(table, pnet, self.thresholds[0])
                windows = refine(table, rnet, windows, self.thresholds[1])
                return conclude(table, onet, windows, self.thresholds[2])
        finally:
            self._idle.put(networks)


def load_network(name: str) -> nn.Module:
    """facenet-pytorch's "PNet", "RNet" or "ONet", with the weights that its wheel carries."""
    from facenet_pytorch.models import mtcnn

    return getattr(mtcnn, name)().eval()


@cache
def _compile(name: str, threads: int):
    """A network compiled by OpenVINO, for so many threads that each run it on windows of their own."""
    example = torch.zeros(1, 3, SIDES[name], SIDES[name])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
    return compile_network(load_network(name), example, (-1, 3, -1, -1), **settings)


def pyramid_scales(height: int, width: int) -> list[float]:
    """The scales at which P-Net's window of 12 pixels covers faces of 20 pixels, 28, 40, … up to the whole frame."""
    scales, scale = [], CELL / SMALLEST_FACE
    while min(height, width) * scale >= CELL:
        scales.append(scale)
        scale *= FACTOR
    return scales


def propose(table: "SumTable | TorchTable", pnet, threshold: float) -> Windows:
    """P-Net at every place of every level; neighbours that overlap are joined, within a level and then over all."""
    found, scales = [], pyramid_scales(table.height, table.width)
    levels = table.shrink([(int(table.height * scale + 1), int(table.width * scale + 1)) for scale in scales])
    for level, (scale, pictures) in enumerate(zip(scales, levels, strict=True)):
        offsets, probs = pnet(pictures)
        frame, row, column = torch.nonzero(probs[:, 1] >= threshold, as_tuple=True)
        place = torch.stack([column, row], dim=1) * float(STRIDE)
        boxes = torch.cat([((place + 1) / scale).floor(), ((place + CELL) / scale).floor()], dim=1)
        group = frame * len(scales) + level
        found.append((frame, boxes, probs[frame, 1, row, column], offsets[frame, :, row, column], group))
    if not found:  # the frame is smaller than any face
        nothing = torch.zeros(0, device=table.device)
        return Windows(nothing.long(), nothing.reshape(0, 4), nothing)
    frame, boxes, scores, offsets, group = (torch.cat(values) for values in zip(*found, strict=True))
    kept = batched_nms(boxes, scores, group, 0.5)
    windows, offsets = Windows(frame, boxes, scores).choose(kept), offsets[kept]
    kept = batched_nms(windows.boxes, windows.scores, windows.frame, 0.7)
    windows, offsets = windows.choose(kept), offsets[kept]
    sides = (windows.boxes[:, 2:] - windows.boxes[:, :2]).repeat(1, 2)
    return windows._replace(boxes=make_square(windows.boxes + offsets * sides))


def refine(table: "SumTable | TorchTable", rnet, windows: Windows, threshold: float) -> Windows:
    """R-Net at 24 x 24 pixels of each window."""
    windows, (offsets, probs) = look_closer(table, rnet, windows, SIDES["RNet"])
    kept = probs[:, 1] > threshold
    windows, offsets = windows.choose(kept)._replace(scores=probs[kept, 1]), offsets[kept]
    kept = batched_nms(windows.boxes, windows.scores, windows.frame, 0.7)
    windows, offsets = windows.choose(kept), offsets[kept]
    return windows._replace(boxes=make_square(move_sides(windows.boxes, offsets)))


def conclude(table: "SumTable | TorchTable", onet, windows: Windows, threshold: float) -> list[Found]:
    """O-Net at 48 x 48 pixels of each window: the faces of each frame, with landmarks."""
    windows, (offsets, points, probs) = look_closer(table, onet, windows, SIDES["ONet"])
    kept = probs[:, 1] > threshold
    windows, offsets = windows.choose(kept)._replace(scores=probs[kept, 1]), offsets[kept]
    corner, sides = windows.boxes[:, None, :2], windows.boxes[:, None, 2:] - windows.boxes[:, None, :2] + 1
    landmarks = (corner + sides * points[kept].reshape(-1, 2, 5).transpose(1, 2) - 1).cpu().numpy()
    frame, boxes, scores = (
        values.cpu().numpy() for values in windows._replace(boxes=move_sides(windows.boxes, offsets))
    )
    found = []
    for number in range(len(table)):
        faces = np.flatnonzero(frame == number)
        faces = faces[keep_outermost(boxes[faces], scores[faces])]
        found.append((boxes[faces], scores[faces], landmarks[faces]))
    return found


def look_closer(table: "SumTable | TorchTable", network, windows: Windows, side: int) -> tuple[Windows, list[Tensor]]:
    """Cut the windows out at side x side pixels and ask a network. A window outside its frame goes: nothing is seen."""
    corners = windows.boxes.trunc().to(torch.int64)
    low = corners[:, :2].clamp(min=1) - 1
    high = torch.minimum(corners[:, 2:], torch.tensor([table.width, table.height], device=corners.device))
    inside = (low < high).all(dim=1)
    windows, corners = windows.choose(inside), torch.cat([low, high], dim=1)[inside]
    n_windows = len(corners)
    n_spare = -n_windows % ROUND if n_windows else ROUND
    corners = torch.cat([corners, corners.new_tensor([[0, 0, 1, 1]]).expand(n_spare, 4)])
    frame = nn.functional.pad(windows.frame, (0, n_spare))
    size = BATCH[corners.device.type]
    answers = [
        network(table.cut(frame[i : i + size], corners[i : i + size], side)) for i in range(0, len(corners), size)
    ]
    return windows, [torch.cat(values)[:n_windows] for values in zip(*answers, strict=True)]


def move_sides(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Move each side by its offset, a share of the box's width or height (pixels counted from 1 to n, as the peer)."""
    return boxes + offsets * (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)


def make_square(boxes: Tensor) -> Tensor:
    """The square around each box with the same centre and the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat([corner, corner + longer], dim=1)


def keep_outermost(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of boxes, most certain first, without those of which 70 % share a better one or hold it.

    Scores near 1 are often equal to the bit: then the peer's way to sort decides which box stays, so it is ours too.
    """
    size = boxes[:, 2:] - boxes[:, :2] + 1
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    area = size.prod(axis=1)
    shared = np.clip(high - low + 1, 0, None).prod(axis=2) / np.minimum(area[:, None], area[None])
    kept, order = [], np.argsort(scores)[::-1]
    while len(order):
        kept.append(order[0])
        order = order[1:][shared[order[0], order[1:]] <= 0.7]
    return np.array(kept, dtype=int)


class SumTable:
    """Sums over every rectangle of some equal frames, on a CPU.

    sums: (N, H + 1, W + 1, 3) uint32; of a large frame they wrap around, and their differences are right all the same.
    """

    def __init__(self, frames: Sequence[np.ndarray]):
        self.height, self.width = frames[0].shape[:2]
        self.device = torch.device("cpu")
        self.sums = np.empty((len(frames), self.height + 1, self.width + 1, 3), np.int32)
        for frame, sums in zip(frames, self.sums, strict=True):
            cv2.integral(frame, sums)
        self._rows = self.sums.view(np.uint32).reshape(len(frames), self.height + 1, -1)

    def __len__(self) -> int:
        return len(self.sums)

    def shrink(self, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """The frames at each size (height, width): (N, 3, height, width) float32 in [-1, 1]."""
        levels = [np.empty((len(self), 3, *size), np.float32) for size in sizes]
        whole = np.array([[0, 0, self.width, self.height]])
        for number in range(len(self)):  # each frame's sums are read while they are in the cache
            for level in levels:
                _average(self._rows, np.array([number]), whole, level[number : number + 1])
        return [torch.from_numpy(level) for level in levels]

    def cut(self, frame: Tensor, corners: Tensor, side: int) -> Tensor:
        """Windows with corners (n, 4) x0, y0, x1, y1 at side x side pixels: (n, 3, side, side) float32 in [-1, 1]."""
        windows = np.empty((len(corners), 3, side, side), np.float32)
        _average(self._rows, frame.numpy(), corners.numpy(), windows)
        return torch.from_numpy(windows)


@numba.njit(nogil=True, cache=True)
def _average(sums, frame, corners, means):
    """Fill means (n, 3, h, w) with cell averages of the windows. Cells overlap where a window does not divide evenly:

    cell i of m over n pixels reaches from floor(i n / m) to ceil((i + 1) n / m), as in adaptive average pooling.
    """
    n_windows, _, height, width = means.shape
    left, right, weights = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.float32)
    for n in range(n_windows):
        x0, y0, x1, y1 = corners[n]
        for j in range(width):
            left[j], right[j] = 3 * (x0 + j * (x1 - x0) // width), 3 * (x0 - (-(j + 1) * (x1 - x0) // width))
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


class TorchTable:
    """The same as SumTable, in torch's own operations: on a GPU the frames stay where the networks are."""

    def __init__(self, frames: Sequence[np.ndarray], device: torch.device):
        self.height, self.width = frames[0].shape[:2]
        self.device = device
        pictures = torch.from_numpy(np.stack(frames)).to(device)
        sums = pictures.permute(0, 3, 1, 2).to(torch.int64).cumsum(2).cumsum(3)  # (N, 3, H, W)
        self.sums = nn.functional.pad(sums, (1, 0, 1, 0)).permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        return len(self.sums)

    def shrink(self, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """As SumTable's."""
        whole = torch.tensor([[0, 0, self.width, self.height]], device=self.sums.device).repeat(len(self), 1)
        return [self._means(torch.arange(len(self), device=self.sums.device), whole, *size) for size in sizes]

    def cut(self, frame: Tensor, corners: Tensor, side: int) -> Tensor:
        """As SumTable's."""
        return self._means(frame, corners, side, side)

    def _means(self, frame: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
        left, right = self._edges(corners[:, 0:1], corners[:, 2:3], width)
        top, bottom = self._edges(corners[:, 1:2], corners[:, 3:4], height)

        def look_up(y: Tensor, x: Tensor) -> Tensor:
            return self.sums[frame[:, None, None], y[:, :, None], x[:, None, :]]

        total = look_up(bottom, right) - look_up(bottom, left) - look_up(top, right) + look_up(top, left)
        area = ((bottom - top)[:, :, None] * (right - left)[:, None, :])[..., None]
        return (total / (128 * area) - 127.5 / 128).permute(0, 3, 1, 2)

    def _edges(self, low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        number = torch.arange(cells, device=low.device)
        return low + number * (high - low) // cells, low - (-(number + 1) * (high - low) // cells)
