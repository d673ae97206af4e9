import numpy as np
import pytest
import torch

from dfdc_lib.rehearsal import autoencoder as a
from dfdc_lib.rehearsal.people import LANDMARKS, PEOPLE, express, other_face, person, pose

NAMES = sorted(LANDMARKS)
PHOTOS = {name: a.photograph(name, 6, np.random.default_rng(5)) for name in NAMES}
FACE = a.face_weights().numpy() > 0.5


@pytest.mark.parametrize("identity", PEOPLE)
def test_a_face_is_aligned_wherever_it_stands(identity):
    """On its side and moved, a portrait gives the same square."""
    picture, landmarks = person(identity)
    turned = np.pad(np.rot90(picture), ((7, 0), (9, 0), (0, 0)), mode="edge")
    x, y = landmarks.T
    there = np.stack([y + 9, picture.shape[1] - 1 - x + 7], axis=1)
    difference = a.align(turned, there).astype(int) - a.align(picture, landmarks)
    assert np.abs(difference[FACE]).mean() < 3


def test_what_normalising_takes_away_can_be_put_back():
    faces, mean, spread = a.normalise(PHOTOS["hopper"])
    assert faces.shape == (6, 3, a.SIDE, a.SIDE)
    weights = a.face_weights() / a.face_weights().sum()
    assert torch.allclose((faces * weights).sum(dim=(2, 3)), torch.zeros(6, 3), atol=1e-4)
    assert torch.allclose((faces**2 * weights).sum(dim=(2, 3)), torch.ones(6, 3), atol=1e-3)
    restored = ((faces * spread + mean) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(restored - PHOTOS["hopper"]).max() < 0.01


def test_warping_bends_by_what_it_says_and_by_its_generator():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    place = torch.stack([x, y, x]).repeat(50, 1, 1, 1)
    assert torch.allclose(a.warp(place, torch.Generator(), reach=0), place, atol=1e-4)
    one, two = (a.warp(place, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    pushed = (one - place)[:, :2, 16:48:16, 16:48:16]
    assert 0.03 < pushed.std() < 0.08
    assert pushed.mean().abs() < 0.01


def likeness(drawn: np.ndarray, name: str) -> float:
    """How alike drawn faces are to a portrait, light and colour aside: 1 at best."""
    portrait, _, _ = a.normalise(a.align(*person(name))[None])
    faces, _, _ = a.normalise(drawn)
    return float((faces * portrait).mean(dim=1)[:, FACE].mean())


@pytest.mark.parametrize("name", NAMES)
def test_the_other_decoder_draws_the_other_person_in_this_ones_light(name):
    other = other_face(name)
    itself, swapped = a.draw_as(name, PHOTOS[name]), a.draw_as(other, PHOTOS[name])
    assert swapped.shape == PHOTOS[name].shape
    assert swapped.dtype == np.uint8
    assert likeness(itself, name) > likeness(itself, other) + 0.2
    assert likeness(swapped, other) > likeness(swapped, name) + 0.2
    ours, theirs = (faces[:, FACE].mean(axis=1) for faces in (PHOTOS[name], swapped))
    assert np.abs(ours - theirs).max() < 12  # grey levels of each channel's mean


def test_the_drawn_mouth_opens_with_the_filmed_one():
    """What changes in the drawing lies at the mouth, and not at the eyes."""
    picture, landmarks = pose("hopper", np.random.default_rng(1))
    frames = [express(picture, landmarks, (0, 0, m, 0, 0, 0))[0] for m in (-0.1, 0.3)]
    drawn = a.draw_as("collins", np.stack([a.align(frame, landmarks) for frame in frames]))
    change = np.abs(drawn[0].astype(int) - drawn[1]).mean(axis=2) * FACE
    eyes, mouth = (int(a.ALIGNED[rows, 1].mean().round()) for rows in (slice(2), slice(3, 5)))
    at_eyes, at_mouth = (change[row - 4 : row + 5].mean() for row in (eyes, mouth))
    assert at_mouth > 2 * at_eyes


def test_loading_it_leaves_the_random_numbers_alone_and_it_can_be_used_as_any_network():
    a.load_autoencoder.cache_clear()
    before = torch.random.get_rng_state()
    a.draw_as("hopper", PHOTOS["collins"])
    assert torch.equal(torch.random.get_rng_state(), before)
    faces = a.normalise(PHOTOS["collins"])[0].requires_grad_()
    a.load_autoencoder()(faces, "hopper").sum().backward()
    assert faces.grad.isfinite().all()
    assert not any(weight.requires_grad for weight in a.load_autoencoder().parameters())


def test_a_face_of_one_colour_is_drawn_in_that_colour():
    black = np.zeros((1, a.SIDE, a.SIDE, 3), np.uint8)
    assert a.draw_as("hopper", black).max() <= 3


def test_the_bytes_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = a.draw_as("collins", PHOTOS["hopper"])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert np.array_equal(a.draw_as("collins", PHOTOS["hopper"]), two)
    finally:
        torch.set_num_threads(before)
