"""How well a character goes where it is told: its path, course and speed against those that are commanded.

Course and speed are those of windows of half a second, about a step, so that the root's sway counts for neither; the
command's are taken over the same windows of the path that it commands, so who follows exactly has no error.
Units and frames are those of motion_lib. Dimension key: E episodes, T control steps, W windows, one from each step on.
"""

import math
from typing import Dict, List, Tuple

import torch
from torch import Tensor

WINDOW = 0.5  # [s]
SETTLE = 1.0  # after a change of the command until it has to be followed [s]
TURN, SPEED_CHANGE = math.pi / 6, 0.3  # what is a change, and no drift: more than this from step to step [rad], [m/s]
STANDING = 0.3  # a speed below which there is no course [m/s]
LONGEST_LAG = 2.0  # [s]


def commanded_path(heading: Tensor, speed: Tensor, dt: float) -> Tensor:
    """Where headings (E, T) [rad] and speeds (E, T) [m/s], each for a step of dt [s], lead to: (E, T + 1, 2) [m]."""
    step = dt * speed[..., None] * torch.stack((torch.cos(heading), torch.sin(heading)), -1)  # (E, T, 2)
    return torch.cat((torch.zeros_like(step[:, :1]), step.cumsum(1)), 1)


def settled(heading: Tensor, speed: Tensor, dt: float) -> Tensor:
    """Whether commands (E, T) have held for SETTLE, but for drift; the start is a change, too. (E, T) bool."""
    turn = heading.diff(dim=1)
    turned = torch.atan2(torch.sin(turn), torch.cos(turn)).abs() > TURN  # (E, T - 1)
    changed = turned | (speed.diff(dim=1).abs() > SPEED_CHANGE)
    step = torch.arange(speed.shape[1], device=speed.device)
    since = torch.cat((0 * step[:1].expand(len(speed), 1), changed * step[1:]), 1).cummax(1)[0]  # (E, T) last change
    return step - since >= round(SETTLE / dt)


def lag(velocity: Tensor, command: Tensor, lived: Tensor, dt: float) -> Tensor:
    """The delay at which velocities and commanded ones, both (E, W, 2) [m/s], correlate best: () [s], of all episodes.

    lived: which windows count (E, W) bool. NaN if the commands are all the same, or none longer than LONGEST_LAG."""
    v, c = torch.view_as_complex(velocity), torch.view_as_complex(command)  # (E, W)
    W = v.shape[1]
    longest = round(LONGEST_LAG / dt)
    lived = lived[:, longest:]  # the same velocities for each delay, so that the start is none of them
    found = []
    for delay in range(longest + 1) if bool(lived.any()) else ():
        earlier = c[:, longest - delay : W - delay] * lived  # (E, W - longest)
        # |sum_t v(t) c(t - delay)*| / |c|, of complex numbers: a course that is off all the time is no lag
        found.append(
            (v[:, longest:] * earlier.conj()).sum().abs() / earlier.abs().square().sum().sqrt().clamp_min(1e-9)
        )
    found = torch.stack(found) if found else velocity.new_zeros(1)
    same = found.max() - found.min() <= 1e-4 * found.abs().max()
    return torch.where(same, math.nan, found.argmax() * dt)


def path_error(path: Tensor, command: Tensor, steps: Tensor, delay: int) -> Tensor:
    """Mean distance of paths from where the commands have led, both (E, T + 1, 2) [m], over the steps lived: (E,) [m].

    The commanded path is shifted and turned as a whole, so that it begins where it fits best: the squared distances
    between the character and where it should have been `delay` control steps ago are least. These distances are
    averaged; they grow with a speed that is off, not with a course that is off all the time. NaN within the delay."""
    errors = []
    for own, asked, n in zip(torch.view_as_complex(path), torch.view_as_complex(command), (steps + 1).tolist()):
        own = own[delay:n]
        asked = asked[: len(own)]
        own = own - own.mean()
        asked = asked - asked.mean()
        # the rotation r = e^(ia) for which sum |own - r asked|^2 is least: that of sum own asked*
        errors.append((own - torch.sgn((own * asked.conj()).sum()) * asked).abs().mean())
    return torch.stack(errors)


def figures(states: List, goals: List[Tuple[Tensor, Tensor]], steps: Tensor, dt: float) -> Dict[str, Tensor]:
    """How well each episode has followed its commands: name -> (E,), NaN where nothing counts; lag_s () is of all.

    states: T + 1 of MotionState, batch (E,), the start first; goals: T commanded headings (E,) [rad, world] and speeds
    (E,) [m/s], each for a control step of dt [s]; steps (E,) lived. Errors of course and speed: windows that lie past
    the first second after the start or a change; of course: only those in which command and character move."""
    path = torch.stack([state.root_position[:, :2] for state in states], 1)  # (E, T + 1, 2)
    heading, speed = [torch.stack(x, 1) for x in zip(*goals)]  # (E, T)
    size = min(round(WINDOW / dt), len(goals))
    asked = commanded_path(heading, speed, dt)
    velocity, command = [(x[:, size:] - x[:, :-size]) / (size * dt) for x in (path, asked)]  # (E, W, 2)
    going, told = velocity.norm(dim=-1), command.norm(dim=-1)  # (E, W) [m/s]
    lived = torch.arange(size, path.shape[1], device=steps.device) <= steps[:, None]  # (E, W)
    counts = lived & settled(heading, speed, dt).unfold(1, size, 1).all(-1)
    # angle between u and v: atan2(|u x v|, u . v)
    cross = velocity[..., 0] * command[..., 1] - velocity[..., 1] * command[..., 0]
    angle = torch.atan2(cross.abs(), (velocity * command).sum(-1))
    moves = counts & (going > STANDING) & (told > STANDING)
    delay = lag(velocity, command, lived, dt)

    def mean(x: Tensor, which: Tensor) -> Tensor:  # (E,)
        return torch.where(which, x, math.nan).nanmean(1)

    return {
        "course_error_deg": mean(torch.rad2deg(angle), moves),
        "speed_error_m_s": mean((going - told).abs(), counts),
        "path_speed_m_s": mean(going, lived),
        "commanded_speed_m_s": mean(told, lived),
        "lag_s": delay,
        "path_error_m": path_error(path, asked, steps, round(float(delay.nan_to_num()) / dt)),
    }


def averages(values: Dict[str, Tensor]) -> Dict[str, float]:
    """Means over episodes of what figures() returns, without those of which there are none."""
    means = {name: float(x.nanmean()) for name, x in values.items()}
    return {name: x for name, x in means.items() if math.isfinite(x)}
