"""Degradations: seeded, and each does what its model says."""

import numpy as np
import pytest

from contracts.errors import InputError
from data import degradations
from data.degradations import (
    RAIN_LENGTH,
    SIGMAS,
    TASKS,
    add_noise,
    add_rain,
    degrade,
    pseudo_depth,
    scatter,
    streak,
    transmission,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def photo():
    return rng(9).integers(60, 196, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(photo, task):
    one, same, other = (degrade(photo, task, rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.uint8
    assert one.shape == photo.shape
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    assert one.tobytes() != photo.tobytes()


def test_a_degradation_leaves_the_photo_it_is_given_alone(photo):
    before = photo.copy()
    for task in TASKS:
        degrade(photo, task, rng())
    assert np.array_equal(photo, before)


def test_an_unknown_task_is_refused_with_the_known_ones(photo):
    with pytest.raises(InputError, match=r"'snow'.*haze"):
        degrade(photo, "snow", rng())


@pytest.mark.parametrize(("task", "sigma"), SIGMAS.items())
def test_noise_has_its_sigma_and_no_bias_and_is_white(task, sigma):
    # Grey far from both ends: nothing is clipped at 50 but one value in a hundred.
    flat = np.full((256, 256, 3), 128, np.uint8)
    noise = degrade(flat, task, rng()).astype(float) - 128
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 0.3
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.01


def test_noise_is_clipped_and_not_wrapped_around():
    white = add_noise(np.full((64, 64, 3), 255, np.uint8), 25, rng())
    assert white.min() > 100
    assert (white == 255).mean() == pytest.approx(0.5, abs=0.02)


def test_rain_only_brightens_and_equally_in_all_channels():
    flat = np.full((64, 64, 3), 40, np.uint8)
    added = add_rain(flat, rng()).astype(int) - 40
    assert added.min() == 0
    assert (added > 0).any()
    assert (added > 0).mean() < 0.5
    assert np.array_equal(added[..., 0], added[..., 2])


def test_rain_falls_along_its_angle_and_reaches_the_border(monkeypatch):
    monkeypatch.setattr(degradations, "RAIN_ANGLE", (90.0, 90.0))
    black = np.zeros((96, 96, 3), np.uint8)
    rain = np.mean([add_rain(black, rng(seed))[..., 0] for seed in range(60)], axis=0)
    one = add_rain(black, rng())[..., 0].astype(float)
    down, across = (
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in ((one[1:], one[:-1]), (one.T[1:], one.T[:-1]))
    )
    assert down > 0.8
    assert across < 0.2
    # Without a margin the first and the last rows would see half the drops.
    assert rain[[0, -1]].mean() == pytest.approx(rain[40:56].mean(), rel=0.25)


def test_a_streak_is_a_line_of_its_length_through_the_middle():
    upright, level = streak(90), streak(0)
    assert upright.shape == (RAIN_LENGTH, RAIN_LENGTH)
    assert np.allclose(upright, level.T, atol=1e-6)
    assert np.allclose(upright[:, RAIN_LENGTH // 2], 1, atol=0.15)
    assert upright.sum() == pytest.approx(RAIN_LENGTH, rel=0.15)
    # Above the horizontal: up and to the right.
    slanted = streak(60)
    assert slanted[1, 7] > 0.5
    assert slanted[1, 3] == 0


def test_haze_is_undone_by_its_transmission_and_airlight_and_by_no_others(photo):
    depth = pseudo_depth(*photo.shape[:2], rng())
    t, airlight = transmission(depth, 0.8), 0.9
    hazy = scatter(photo, t, airlight)

    def undone(t, airlight):
        return (hazy - 255 * airlight * (1 - t[..., None])) / t[..., None]

    assert abs(undone(t, airlight) - photo).max() <= 0.5 / t.min() + 1e-3
    assert abs(undone(t, 0.8) - photo).mean() > 5
    assert abs(undone(transmission(depth, 0.4), airlight) - photo).mean() > 5


def test_transmission_falls_with_depth_from_less_than_one():
    t = transmission(np.array([[0.0, 1.0]], np.float32), 0.5)
    assert t[0].tolist() == pytest.approx([np.exp(-0.15), np.exp(-0.65)])


def test_haze_moves_every_pixel_towards_the_airlight_and_more_the_farther_it_is(photo):
    near, far = (np.full(photo.shape[:2], d, np.float32) for d in (0.0, 1.0))
    airlight = 255 * 0.9
    away = [abs(scatter(photo, transmission(d, 0.8), 0.9) - airlight).mean() for d in (near, far)]
    assert abs(photo - airlight).mean() > away[0] > away[1]
    assert scatter(photo, transmission(far, 0.8), 0.9).mean() > photo.mean()


def test_haze_follows_the_measured_depth_where_there_is_one(photo):
    depth = np.zeros(photo.shape[:2], np.float32)
    depth[:, 32:] = 1
    changed = abs(degrade(photo, "haze", rng(), depth).astype(int) - photo)
    assert changed[:, 32:].mean() > 1.5 * changed[:, :32].mean()
    assert not np.array_equal(degrade(photo, "haze", rng(), depth), degrade(photo, "haze", rng()))


def test_made_up_depth_is_smooth_in_range_and_recedes_upwards():
    fields = np.stack([pseudo_depth(64, 64, rng(seed)) for seed in range(40)])
    assert fields.min() >= 0
    assert fields.max() <= 1
    assert abs(np.diff(fields, axis=1)).max() < 0.1
    assert fields[:, :8].mean() > fields[:, -8:].mean() + 0.3
    assert fields.std(axis=0).mean() > 0.05
