"""course.py: figures of characters that follow their commands exactly, late, sideways, at half speed, or not at all."""

import math
from types import SimpleNamespace

import pytest
import torch

import course

DT = 1.0 / 30.0


def commands(steps=600, episodes=3):
    """Headings that drift and turn sharply at 8 s, a speed that changes at 14 s: (E, T) [rad], [m/s]."""
    generator = torch.Generator().manual_seed(0)
    turns = 0.15 * torch.randn(episodes, steps, generator=generator) * (torch.arange(steps) % 10 == 9)
    turns[:, 240] = 2.0
    speed = torch.full((episodes, steps), 1.2)
    speed[:, 420:] = 2.0
    return turns.cumsum(1), speed


def follow(heading, speed, late=0, off=0.0, share=1.0):
    """Positions (E, T + 1, 2) of who does what was asked `late` steps ago, `off` [rad] the course, at a share."""
    told = course.commanded_path(heading + off, share * speed, DT)
    stay = course.commanded_path(heading[:, :1] + off, share * speed[:, :1], DT)[:, 1]  # of one step
    before = stay[:, None] * torch.arange(-late, 0)[:, None]
    return torch.cat((before, told), 1)[:, : told.shape[1]]


def figures(position, heading, speed, steps=None):
    states = [SimpleNamespace(root_position=x) for x in position.unbind(1)]
    goals = list(zip(heading.unbind(1), speed.unbind(1)))
    steps = torch.full((len(heading),), heading.shape[1]) if steps is None else torch.tensor(steps)
    return course.figures(states, goals, steps, DT)


def test_the_commanded_path():
    """A second north at 2 m/s, then a second west at 1."""
    heading = torch.tensor([[0.5 * math.pi] * 30 + [math.pi] * 30])
    path = course.commanded_path(heading, torch.tensor([[2.0] * 30 + [1.0] * 30]), DT)
    expected = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-1.0, 2.0]])
    torch.testing.assert_close(path[0, ::30], expected, atol=1e-5, rtol=0)


def test_a_second_after_the_start_and_after_each_change_is_not_counted():
    heading = torch.zeros(4, 120)
    speed = torch.full((4, 120), 1.0)
    heading[0, 50:] = 0.4  # 23 degrees, a drift
    heading[1, 50:] = 0.6
    heading[2, 50:] = 2 * math.pi  # none at all
    speed[3, 50:] = 1.5
    none, change = torch.ones(2, 120, dtype=torch.bool)
    none[:30] = change[:30] = change[50:80] = False
    assert course.settled(heading, speed, DT).equal(torch.stack((none, change, none, change)))


def test_who_follows_exactly():
    heading, speed = commands()
    found = course.averages(figures(follow(heading, speed), heading, speed))
    zero = {"course_error_deg", "speed_error_m_s", "lag_s", "path_error_m"}
    assert {name: found[name] for name in zero} == pytest.approx(dict.fromkeys(zero, 0.0), abs=0.02)
    assert found["path_speed_m_s"] == found["commanded_speed_m_s"] == pytest.approx(1.44, abs=0.02)
    assert set(found) == zero | {"path_speed_m_s", "commanded_speed_m_s"}


@pytest.mark.parametrize("late", [6, 12, 45])
def test_who_lags(late):
    """The drift of 0.4 s is an error of course, and the path is right but for the delay."""
    heading, speed = commands(episodes=8)
    found = course.averages(figures(follow(heading, speed, late), heading, speed))
    assert found["lag_s"] == pytest.approx(late * DT, abs=0.5 * DT)
    assert found["path_error_m"] == pytest.approx(0.0, abs=0.01)
    assert found["course_error_deg"] > 1


def test_who_goes_to_the_side():
    """Its path is the one commanded, turned: only the course tells."""
    heading, speed = commands()
    found = course.averages(figures(follow(heading, speed, off=math.pi / 6), heading, speed))
    assert found["course_error_deg"] == pytest.approx(30, abs=0.1)
    assert (found["speed_error_m_s"], found["lag_s"], found["path_error_m"]) == pytest.approx((0, 0, 0), abs=0.01)


def test_who_goes_at_half_speed():
    """On a straight line of 24 m it is 6 m too far back or ahead of the middle, 3 m in the mean."""
    heading = torch.zeros(2, 600)
    speed = torch.full((2, 600), 1.2)
    found = course.averages(figures(follow(heading, speed, share=0.5), heading, speed))
    assert found["speed_error_m_s"] == pytest.approx(0.6, abs=1e-3)
    assert found["path_speed_m_s"] == pytest.approx(0.6, abs=1e-3) and found["course_error_deg"] < 0.1
    assert found["path_error_m"] == pytest.approx(3.0, abs=0.02)
    assert "lag_s" not in found  # the commands are all the same


def test_the_sway_of_the_root_is_no_course():
    """4 cm to each side, a step of 0.5 s: up to 27 degrees from instant to instant."""
    heading = torch.zeros(1, 600)
    speed = torch.full((1, 600), 1.0)
    position = follow(heading, speed)
    position[..., 1] += 0.04 * torch.sin(2 * math.pi * torch.arange(601) / 15)
    assert figures(position, heading, speed)["course_error_deg"].item() == pytest.approx(0, abs=0.01)


def test_who_stands():
    """It has no course, and none is asked of it while it is to stand."""
    heading, speed = commands()
    still = torch.zeros(3, 601, 2)
    found = course.averages(figures(still, heading, speed))
    assert "course_error_deg" not in found and "lag_s" not in found
    assert (found["path_speed_m_s"], found["commanded_speed_m_s"]) == pytest.approx((0, 1.44), abs=0.02)
    told = course.averages(figures(still, heading, 0 * speed))
    assert "course_error_deg" not in told and told["speed_error_m_s"] == told["path_error_m"] == 0
    away = course.averages(figures(follow(heading, speed, off=1.0), heading, 0 * speed))
    assert "course_error_deg" not in away and away["speed_error_m_s"] > 1.2


def test_what_comes_after_a_fall_does_not_count():
    """The second falls after 5 s, the third at once, and all that follows is nonsense."""
    heading, speed = commands()
    position = follow(heading, speed)
    position[1, 151:] = 100.0
    position[2, 1:] = -100.0
    found = figures(position, heading, speed, steps=[600, 150, 0])
    assert found["course_error_deg"][:2].max() < 0.1 and found["speed_error_m_s"][:2].max() < 0.01
    assert found["path_error_m"][:2].max() < 0.01 and found["lag_s"] == 0
    for name in ("course_error_deg", "speed_error_m_s", "path_speed_m_s"):
        assert found[name].isnan().tolist() == [False, False, True], name


@pytest.mark.parametrize("steps", [1, 4, 29, 60, 61])
def test_short_episodes_have_the_figures_that_they_can_have(steps):
    heading = torch.zeros(2, steps)
    speed = torch.ones(2, steps)
    found = course.averages(figures(follow(heading, speed), heading, speed))
    assert found["path_speed_m_s"] == pytest.approx(1.0, abs=1e-4)
    assert ("course_error_deg" in found) == (steps > 45) and "lag_s" not in found
    assert found["path_error_m"] == pytest.approx(0.0, abs=1e-3)
