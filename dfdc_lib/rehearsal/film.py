"""A synthetic camera: people on a blurred backdrop, light, a shaking hand, noise, a codec."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np

from dfdc_lib.blending import eyes_to_mouth
from dfdc_lib.geometry import move_points
from dfdc_lib.rehearsal.people import REACH, express, person, pose, relight

# A frame, or what the camera pans over; and each person's landmarks (5, 2) in it.
Scene = tuple[np.ndarray, list[np.ndarray]]
# A picture of a person, the landmarks in it, and the affine map (2, 3) from it to the scene.
Actor = tuple[np.ndarray, np.ndarray, np.ndarray]
ONE = "pools=none:frame-threads=1:bframes=0"  # x265 on one thread; with B frames short films fail
# FFmpeg's encoder, its options, and what to add to the crf for roughly H.264's quality. One
# thread each, and no macroblock tree: with it a process's first file differed from the others.
CODECS: dict[str, tuple[str, dict[str, str], int]] = {
    "h264": ("libx264", {"preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}, 0),
    "hevc": ("libx265", {"preset": "superfast", "x265-params": f"{ONE}:log-level=none"}, 2),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "threads": "1", "b": "0"}, 12),
}


@dataclass(frozen=True)
class Shot:
    """How an original is filmed. The same values give the same frames."""

    seed: int
    identities: tuple[str, ...]  # of PEOPLE
    width: int
    height: int
    n_frames: int
    crf: int  # quality of the published file
    camera_crf: int = 16  # quality of the camera's own file: fakes are made from what it recorded
    codec: str = "h264"  # of the published file, from CODECS
    fps: int = 30
    noise: float = 0.0  # that the publisher adds, in grey levels
    leaves_frame: bool = False
    crosses: bool = False  # two people change places, the first one in front


def write_video(
    target: Path | BytesIO,
    frames: Iterable[np.ndarray],
    crf: int = 23,
    codec: str = "h264",
    fps: int = 30,
) -> None:
    """Write frames (H, W, 3) uint8 RGB, of even H and W, as mp4 in yuv420p.

    crf: constant rate factor on x264's scale; lower is better. codec: a name from CODECS. The same
    frames give the same bytes.
    """
    encoder, options, offset = CODECS[codec]
    options = options | {"crf": str(crf + offset)}
    where = target if isinstance(target, BytesIO) else str(target)
    with av.open(where, "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=fps, options=options, pix_fmt="yuv420p")
        assert isinstance(stream, av.VideoStream)
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def record(frames: Iterable[np.ndarray], crf: int) -> Iterator[np.ndarray]:
    """Compress frames as a camera does, and yield them as read back from its file."""
    memory = BytesIO()
    write_video(memory, frames, crf)
    memory.seek(0)
    with av.open(memory, "r") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def add_grain(picture: np.ndarray, field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise to (H, W, 3): a window of `field` (H + 128, W + 128, 3) that jumps at random.

    One field of noise is as random to a codec as many, and far faster.
    """
    height, width = picture.shape[:2]
    x, y = rng.integers(128, size=2)
    return cv2.add(picture, field[y : y + height, x : x + width], dtype=cv2.CV_8U)


def grain_field(shot: Shot, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Noise for `add_grain`, of `sigma` grey levels."""
    shape = (shot.height + 128, shot.width + 128, 3)
    return rng.standard_normal(shape, np.float32) * np.float32(sigma)


def prepare_scene(shot: Shot, rng: np.random.Generator) -> tuple[np.ndarray, list[Actor]]:
    """A blurred backdrop, float32, 1.4 times the frame's size, and the cast in front of it."""
    width, height = round(1.4 * shot.width), round(1.4 * shot.height)
    picture, _ = person(shot.identities[0])
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(relight(small, rng), (0, 0), 2)
    canvas = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_CUBIC)
    alone = len(shot.identities) == 1
    # Faces grow more slowly than frames: a 1080p camera stands farther away.
    enlarged = (min(shot.width, shot.height) / 270) ** 0.6
    size = rng.uniform(0.11, 0.17) * (1 if alone else 0.8) * 270 * enlarged
    cast = []
    for identity, across in zip(shot.identities, (0.5,) if alone else (0.32, 0.68), strict=True):
        picture, landmarks = pose(identity, rng)
        if shot.crosses:  # the portrait's background would hide the other person for seconds
            picture, landmarks = cut_column(picture, landmarks)
        scale = size * np.exp(rng.normal(0, 0.05)) / eyes_to_mouth(landmarks)
        off = rng.normal(0, 0.03, 2) * (shot.width, shot.height)
        place = np.array([across * width, 0.45 * height]) + off
        move = np.column_stack([np.eye(2) * scale, place - landmarks.mean(axis=0) * scale])
        cast.append((picture, landmarks, move))
    return canvas.astype(np.float32), cast


def cut_column(picture: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop a portrait to a column around the face."""
    centre, reach = landmarks[:, 0].mean(), 2 * eyes_to_mouth(landmarks)
    left, right = max(int(centre - reach), 0), int(centre + reach)
    return np.ascontiguousarray(picture[:, left:right]), landmarks - (left, 0)


def set_scene(backdrop: np.ndarray, cast: list[Actor], crossed: float = 0) -> Scene:
    """Draw the cast, the first in front; `crossed`, 0 to 1: how far they have changed places."""
    canvas, people = backdrop.copy(), []
    way = 0.4 * canvas.shape[1] * crossed * np.array([[0, 0, 1], [0, 0, 0]])
    for number, (picture, landmarks, move) in reversed(list(enumerate(cast))):
        move = move - way if number else move + way
        draw_portrait(canvas, picture, move)
        people.append(move_points(landmarks, move))
    return canvas.round().astype(np.uint8), people[::-1]


def draw_portrait(canvas: np.ndarray, picture: np.ndarray, move: np.ndarray) -> None:
    """Draw a portrait with a soft border into a float32 canvas, through an affine map."""
    scale = float(move[0, 0])
    if scale < 0.8:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        move = np.column_stack([np.eye(2), move[:, 2] + (1 - scale) / 2])
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    border = np.minimum.reduce([x, y, width - 1 - x, height - 1 - y]) / (0.12 * width)
    size = canvas.shape[1::-1]
    weights = cv2.warpAffine(np.clip(border, 0, 1), move, size)[..., None]
    style: dict = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
    moved = cv2.warpAffine(picture, move, size, **style)
    canvas += weights * (moved - canvas)


def wander(n_frames: int, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve (n_frames,): three slow waves, about `amplitude` high."""
    time = np.arange(n_frames) / 30
    speeds, phases = rng.uniform(0.3, 1.2, 3), rng.uniform(0, 2 * np.pi, 3)
    return amplitude * np.sin(2 * np.pi * time[:, None] * speeds + phases).mean(axis=1)


def camera_path(shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """Zoom, roll and pan by hand: affine maps (n_frames + 1, 2, 3) from scene to frame."""
    n, size = shot.n_frames + 1, np.array([shot.width, shot.height])
    shake = 0.25 if shot.crosses else 1  # steadier where people walk
    zoom = np.exp(wander(n, 0.12 * shake, rng))
    roll = np.radians(rng.normal(0, 4) + wander(n, 5 * shake, rng))
    shift = np.stack([wander(n, 0.12, rng), wander(n, 0.10, rng)], axis=1) * size * shake
    if shot.leaves_frame:
        shift[:, 0] += 0.95 * shot.width * np.clip(np.sin(np.pi * np.arange(n) / n) * 2 - 1, 0, 1)
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.stack([cos, -sin, sin, cos], axis=1).reshape(n, 2, 2) * zoom[:, None, None]
    centre = 0.7 * size  # of the scene, which is 1.4 times the frame
    return np.concatenate([turn, (size / 2 + shift - turn @ centre)[..., None]], axis=2)


def expose(picture: np.ndarray, before: np.ndarray, after: np.ndarray, size) -> np.ndarray:
    """Film a scene while the camera moves from one affine map to another: (H, W, 3) float32."""
    height, width = picture.shape[:2]
    way = np.hypot(*((after - before) @ (width / 2, height / 2, 1)))  # of the middle, in pixels
    moments = np.linspace(before, after, 1 + int(np.clip(np.ceil(way), 1, 48)))
    light = np.zeros((size[1], size[0], 3), np.float32)
    style: dict = {"borderMode": cv2.BORDER_REPLICATE}
    for moment in moments:
        cv2.accumulate(cv2.warpAffine(picture, moment, size, **style), light)
    return light / len(moments)


def shade(shot: Shot, slopes: np.ndarray, exposure: float) -> np.ndarray:
    """How light falls on a frame, (H, W, 3) float32: from one side, exp of `slopes` (2,)."""
    y, x = np.linspace(-0.5, 0.5, 16)[:, None], np.linspace(-0.5, 0.5, 16)[None]
    light = (exposure * np.exp(slopes[0] * x + slopes[1] * y)).astype(np.float32)
    return cv2.merge([cv2.resize(light, (shot.width, shot.height))] * 3)


def perform(shot: Shot) -> Iterator[Scene]:
    """Yield each frame (H, W, 3) uint8 RGB of a shot before any codec, and everyone's landmarks."""
    rng = np.random.default_rng(shot.seed)
    backdrop, cast = prepare_scene(shot, rng)
    scene, path, n = set_scene(backdrop, cast), camera_path(shot, rng), shot.n_frames
    moves = np.array([[wander(n, reach, rng) for reach in REACH.values()] for _ in cast])
    lights = np.stack([wander(n, 0.5, rng), wander(n, 0.5, rng)], axis=1)
    exposures, shutter = np.exp(wander(n, 0.15, rng)), rng.uniform(0, 0.8)
    soft, grain = max(rng.normal(0, 0.4), 0), grain_field(shot, rng.uniform(1, 5), rng)
    for i in range(n):
        if shot.crosses:  # each alone, or one would pull at the other's face
            acting = [
                (*express(portrait, landmarks, move), place)
                for (portrait, landmarks, place), move in zip(cast, moves[:, :, i], strict=True)
            ]
            picture, people = set_scene(backdrop, acting, i / max(n - 1, 1))
        else:
            picture, people = act(scene, moves[:, :, i])
        opened, closed = path[i], path[i] + shutter * (path[i + 1] - path[i])
        seen = expose(picture, opened, closed, (shot.width, shot.height))
        lit = cv2.multiply(seen, shade(shot, lights[i], exposures[i]), dtype=cv2.CV_32F)
        sharp = lit if soft == 0 else cv2.GaussianBlur(lit, (0, 0), soft)
        yield add_grain(sharp, grain, rng), [move_points(p, (opened + closed) / 2) for p in people]


def act(scene: Scene, moves: np.ndarray) -> Scene:
    """Let everyone in a scene sway and speak. moves: (people, 6), see `express`."""
    picture, people = scene
    moved = []
    for landmarks, move in zip(people, moves, strict=True):
        picture, landmarks = express(picture, landmarks, move)
        moved.append(landmarks)
    return picture, moved


def film(shot: Shot) -> Iterator[Scene]:
    """Yield each frame of a shot as the camera's own file gives it, and everyone's landmarks."""
    people = []

    def frames() -> Iterator[np.ndarray]:
        for frame, landmarks in perform(shot):
            people.append(landmarks)
            yield frame

    # The camera writes its whole file before the first frame is read from it.
    return zip(record(frames(), shot.camera_crf), people, strict=True)
