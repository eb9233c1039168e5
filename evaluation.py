"""How good a motion is: pose errors, nearest clips, commands to follow, averages over episodes, a training's health.

It is given motions and tensors; it knows no networks and no simulators. Units and frames are those of motion_lib.
Dimension key: E episodes, T control steps of the simulation, R frames of the reference, J bodies, C commands.
"""

import itertools
import math
import os
import warnings
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import gait
import motion_lib as ml

REFERENCE_SECONDS, REFERENCE_CLIPS = 200.0, 100  # to which an episode's windows are compared, at most [s], [clips]


class Result(NamedTuple):
    """Of an evaluation of E episodes."""

    metrics: Dict[str, Any]  # figures by name
    clips: List[ml.Clip]  # the episodes
    body_errors: Tensor  # (T, J-1) [m] mean pose error of each body but the root over time
    scores: Dict[str, Tensor]  # (E,) what each episode scored in all


# ---- 1. Pose error ---------------------------------------------------------------------------------------------------


def relative_positions(body_position: Tensor, root_rotation: Tensor) -> Tensor:
    """Positions of the non-root bodies relative to the root, in the heading frame.
    body_position (..., J, 3) [m], root_rotation (..., 4), both world -> (..., J-1, 3) [m]"""
    to_heading = ml.quat_from_yaw(-ml.heading(root_rotation))[..., None, :]
    return ml.quat_rotate(to_heading, body_position[..., 1:, :] - body_position[..., :1, :])


def reference_poses(motions: ml.MotionLib, clip: Tensor, time: Tensor) -> Tensor:
    """What pose_error compares with: relative_positions of clips (...) long at times (...) [s] -> (..., J-1, 3) [m]."""
    state = motions.state(clip, time)
    body_position, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return relative_positions(body_position, state.rotations[..., 0, :])


def _costs(simulated: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """For each of the T simulated frames (E, T, J-1, 3): mean over bodies of the distance to every frame of its
    reference (G, R, J-1, 3), one for each episode (G = E) or one for all (G = 1): (E, R) [m]."""
    theirs = reference.permute(0, 2, 3, 1).contiguous()  # (G, J-1, 3, R)
    G, bodies, _, R = theirs.shape
    mine = simulated.unflatten(0, (G, -1)).permute(0, 3, 4, 2, 1).contiguous()  # (G, J-1, 3, T, E / G)
    # E T R (J-1) distances are most of an evaluation's work: a body at a time, as many frames as a core's cache holds
    for frames in mine.split(max(2**17 // (3 * R * mine.shape[-1]), 1), 3):
        total = frames.new_zeros(G, *frames.shape[3:], R)  # (G, frames, E / G, R)
        for g, body in itertools.product(range(G), range(bodies)):
            square = (frames[g, body, ..., None] - theirs[g, body, :, None, None]).square_()  # (3, frames, E / G, R)
            total[g] += square[0].add_(square[1]).add_(square[2]).sqrt_()
        yield from (total / bodies).transpose(1, 2).flatten(0, 1).unbind(1)


def _warp(simulated: Tensor, reference: Tensor, any_start: bool, bound: Tensor) -> Iterator[Tensor]:
    """For each of the T simulated frames: mean cost (E, R) [m] of the best warping path that ends there, for every end
    in the reference, but at frame bound (E,), if it is one, only from there on; the shapes are those of _costs."""
    R = reference.shape[1]
    column = torch.arange(R, device=reference.device)
    # sum and number of the costs of the best path to each cell of a row (one simulated frame), a cell in front of it
    total = torch.full((len(simulated), R + 1), math.inf, dtype=torch.float64, device=reference.device)
    length = torch.zeros_like(total)
    total[:, : R + 1 if any_start else 1] = 0.0  # before the first row: where a path may start
    for t, cost in enumerate(_costs(simulated, reference), 1):
        cost = cost.double()
        # a path enters the row at some column k, from above or diagonally, and goes along it: cost sums from k on
        above, diagonal = total[:, 1:], total[:, :-1]
        count = torch.where(above <= diagonal, length[:, 1:], length[:, :-1])
        along = cost.cumsum(1)
        # min over k of enter_k + (cost_k + ... + cost_j) = along_j + min over k of (enter_k - along_k + cost_k)
        cheapest, k = torch.cummin(torch.minimum(above, diagonal) - along + cost, 1)
        total[:, 1:] = along + cheapest
        length[:, 1:] = count.gather(1, k) + column - k + 1
        total[:, 0] = math.inf
        early = (bound == t)[:, None] & (column < t - 1)  # (E, R)
        yield (total[:, 1:] / length[:, 1:]).masked_fill(early, math.inf)


def pose_error(
    simulated: Tensor, reference: Tensor, steps: Tensor, horizon: Any, any_start: bool = False, to_end: Any = False
) -> Tuple[Tensor, Tensor, Tensor]:
    """Dynamic-time-warping pose error of each episode (AMP paper, section 8.1, table 3), lost steps included.
    Mean over bodies of the distance between simulated (E, T, J-1, 3) and reference (E, R, J-1, 3) positions (see
    relative_positions), averaged along the best warping path: it starts at both first frames (any_start: anywhere in
    the reference), advances by one frame in either or both, and ends at the simulation's last frame, anywhere in the
    reference; to_end (E,): of an episode that lives through its horizon not before that frame of the reference, where
    its clip ends, too. steps (E,) is how many of the T frames an episode lived; each of the horizon - steps control
    steps lost to a fall counts as 1 m.
    -> (E,) [m]; the distance of each body at each frame from where the best path to that frame ends, (E, T, J-1) [m];
    the frame of the reference at which the path ends (E,) long, 0 if steps is"""
    bound = to_end * (steps == horizon) * steps  # (E,) 0: none
    paths = _warp(simulated, reference, any_start, bound)
    best, end = [torch.stack(x, 1) for x in zip(*[cost.min(1) for cost in paths])]
    episode = torch.arange(len(simulated), device=end.device)[:, None]
    matched = reference.expand(len(simulated), -1, -1, -1)[episode, end]  # (E, T, J-1, 3)
    error, last = [F.pad(x, (1, 0)).gather(1, steps[:, None])[:, 0] for x in (best, end)]  # 0 if steps is
    error = (error * steps + (horizon - steps).clamp_min(0)) / horizon
    return error.float(), (simulated - matched).norm(dim=-1), last


def mean_over_episodes(bodies: Tensor, steps: Tensor) -> Tensor:
    """Mean of distances (E, T, J-1) over episodes that live at a frame, steps (E,): (T, J-1), NaN where none does."""
    lived = (torch.arange(bodies.shape[1], device=steps.device) < steps[:, None])[..., None]  # (E, T, 1)
    return (bodies.nan_to_num() * lived).sum(0) / lived.sum(0)


def bodies_of(character: ml.Character, states: Union[ml.MotionState, List[ml.MotionState]]) -> Tuple[Tensor, Tensor]:
    """Positions (E, T, J, 3) [m] and rotations (E, T, J, 4) of all bodies, world, of a list of T states of batch (E,),
    or of a state of batch (E, T)."""
    if isinstance(states, list):
        states = ml.MotionState(*[torch.stack(x, 1) for x in zip(*states)])
    return ml.forward_kinematics(character, states.root_position, states.rotations)


def imitation(
    motions: ml.MotionLib,
    states: List[ml.MotionState],
    steps: Tensor,
    limit: Tensor,
    clip: Tensor,
    start: Tensor,
    dt: float,
    feet: Tuple[str, str],
    more: bool,
) -> Tuple[Dict[str, float], Tensor]:
    """How near episodes come to clips (E,) that they imitate from times start (E,) [s] on.
    states: T + 1 of batch (E,), the start first; steps (E,) lived of limit (E,) control steps of dt [s]; more: also
    pose_error_unaligned_m, rise, turns, gait -> figures, and the error of each body but the root over time (T, J-1)"""
    position, rotation = bodies_of(motions.character, states)  # (E, T + 1, J, ...)
    T = len(states) - 1
    # the reference is one and a half times as long as the episode, so that a slow character can be matched, too
    frame = torch.arange(1, int(1.5 * T) + 1, device=start.device)
    times = start[:, None] + dt * frame  # (E, R) [s]
    theirs = bodies_of(motions.character, motions.state(clip[:, None].expand(times.shape), times))  # (E, R, J, ...)
    poses = relative_positions(position[:, 1:], rotation[:, 1:, 0])  # (E, T, J-1, 3)
    reference = relative_positions(theirs[0], theirs[1][:, :, 0])  # (E, R, J-1, 3)
    ends = ~motions.loop[clip]  # (E,)
    error, bodies, end = pose_error(poses, reference, steps, limit, to_end=ends)
    metrics = {"pose_error_m": float(error.mean())}
    lived = frame[:T] <= steps[:, None]  # (E, T)
    if lived.any():
        metrics["pose_error_on_clock_m"] = float((poses - reference[:, :T]).norm(dim=-1).mean(-1)[lived].mean())
    # before a fall the warping path may run ahead; in a clip that does not loop it goes to the end
    whole = (steps == limit) & motions.loop[clip]
    if whole.any():
        metrics["tempo"] = float((end + 1)[whole].sum() / steps[whole].sum())  # slope of the path
    if more:
        # mean over all joints of |(x_j - x_root) - (y_j - y_root)|, the root among them   (AMP paper, section 8.1)
        relative = [x - x[:, :, :1] for x in (position[:, 1:], theirs[0])]
        metrics["pose_error_unaligned_m"] = float(pose_error(*relative, steps, limit, to_end=ends)[0].mean())
        cycle = round(float(motions.length[0]) / dt)
        if len(motions.clips) == 1 and motions.loop[0] and "tempo" in metrics and T >= cycle:
            both = [(place[:, :, 0, 2], turn[:, :, 0]) for place, turn in ((position, rotation), theirs)]
            metrics.update(gait.cycles(*both, steps, cycle, cycle / metrics["tempo"], dt))
        share = torch.bincount(clip, minlength=len(motions.clips)).tolist()
        metrics.update(gaits(motions, position, rotation, steps, share, feet, dt))
    return metrics, mean_over_episodes(bodies, steps)


def gaits(
    motions: ml.MotionLib, position: Tensor, rotation: Tensor, steps: Tensor, share: List[float], feet: Tuple, dt: float
) -> Dict[str, float]:
    """gait.figures of episodes, and as clip_* those of clips, weighted by share (C); none if no clip has a gait."""
    known = []
    for i in [i for i, x in enumerate(share) if x > 0]:
        time = dt * torch.arange(position.shape[1], device=position.device)
        time = time[motions.loop[i] | (time <= motions.length[i])][None]
        bodies = bodies_of(motions.character, motions.state(torch.full_like(time, i, dtype=torch.long), time))
        theirs = gait.figures(motions.character, *bodies, torch.tensor([time.shape[1] - 1]), feet, dt)
        known += [(share[i], theirs)] if theirs else []
    found = gait.figures(motions.character, position, rotation, steps, feet, dt) if known else {}
    for name, x in max(known, key=lambda entry: entry[0])[1].items() if known else ():
        number = not isinstance(x, str)  # of the order that of the most frequent clip is told
        found[f"clip_{name}"] = sum(w * y[name] for w, y in known) / sum(w for w, _ in known) if number else x
    return found


def nearest_clips(
    motions: ml.MotionLib, poses: Tensor, steps: Tensor, horizon: int, dt: float, window: float = 1.0
) -> Tuple[Dict[str, float], Tensor, Tensor]:
    """Pose error of episodes that mix clips: each window [s] is compared to the clip that it fits best, anywhere in it.
    poses (E, T, J-1, 3) [m] (see relative_positions), steps (E,) lived of `horizon` control steps of dt [s]
    -> pose_error_m: mean over windows [m], lost steps counting 1 m; visits_<clip>: share of the lived windows nearest
    to each clip; the error of each body over time (T, J-1) [m]; and the share for each of the C clips (C,)"""
    E, T = poses.shape[:2]
    W = max(round(window / dt), 1)  # steps a window
    K = math.ceil(horizon / W)  # windows an episode, the last one shorter perhaps
    windows = F.pad(poses, (0, 0, 0, 0, 0, K * W - T)).reshape(E * K, W, *poses.shape[2:])  # (E K, W, J-1, 3)
    begin = W * torch.arange(K, device=poses.device)
    length = (horizon - begin).clamp_max(W).expand(E, K).flatten()  # (E K,)
    lived = (steps[:, None] - begin).clamp(0, W).flatten()  # (E K,)
    errors, distances = [], []
    files = sorted(np.unique(motions.files, return_index=True)[1].tolist())  # of each its first rate: warping sees none
    chosen = files[:: math.ceil(len(files) / REFERENCE_CLIPS)]
    share = min(1.0, REFERENCE_SECONDS / float(motions.length[chosen].sum()))  # of each clip that is looked at
    for i in chosen:
        seconds = float(motions.length[i]) * share + (1.5 * window if motions.loop[i] or share < 1.0 else 0.0)
        times = dt * torch.arange(1 + int(seconds / dt), device=poses.device)  # (R,)
        reference = reference_poses(motions, torch.full_like(times, i, dtype=torch.long), times)  # (R, J-1, 3)
        error, bodies, _ = pose_error(windows, reference[None], lived, length, any_start=True)
        errors.append(error)
        distances.append(bodies)
    error, nearest = torch.stack(errors).min(0)  # (E K,)
    bodies = torch.stack(distances)[nearest, torch.arange(E * K)]  # (E K, W, J-1)
    visits = torch.bincount(nearest[lived > 0], minlength=len(errors)) / (lived > 0).sum().clamp_min(1)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in motions.files])
    metrics = {"pose_error_m": float((error * length).sum() / length.sum())}
    if share * len(chosen) < len(files):
        metrics["share_of_clips_compared"] = share * len(chosen) / len(files)
    for i, visit in zip(chosen, visits.tolist()):
        metrics[f"visits_{os.path.relpath(motions.files[i], folder)}"] = visit
    share_of = torch.zeros(len(motions.clips), device=poses.device)
    share_of[chosen] = visits
    return metrics, mean_over_episodes(bodies.reshape(E, K * W, -1)[:, :T], steps), share_of


def mixture(
    motions: ml.MotionLib, states: List[ml.MotionState], steps: Tensor, limit: int, dt: float, feet: Tuple, more: bool
) -> Tuple[Dict[str, float], Tensor]:
    """nearest_clips of T + 1 states of batch (E,), the start first; more: and the gait beside that of the clips,
    each of which counts as much as it is visited."""
    position, rotation = bodies_of(motions.character, states)
    poses = relative_positions(position[:, 1:], rotation[:, 1:, 0])
    metrics, bodies, share = nearest_clips(motions, poses, steps, limit, dt)
    if more:
        metrics.update(gaits(motions, position, rotation, steps, share.tolist(), feet, dt))
    return metrics, bodies


def load_commands(path: Optional[str], num_envs: int, device: str = "cpu") -> Optional[Tuple[Tensor, Tensor, Tensor]]:
    """Read a command file, lines of "time [s], heading [degrees], speed [m/s]", each valid until the next. None: none.
    -> times (C,) [s], headings (C, num_envs) [rad], speeds (C, num_envs) [m/s], the same for all. Raises InputError."""
    if path is None:
        return None
    with ml.reading(path, 'lines of "time [s], heading [degrees], speed [m/s]"'):
        with open(ml.find(path), encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty file
            table = torch.tensor(np.loadtxt(file, delimiter=",", ndmin=2), dtype=torch.float32, device=device)  # (C, 3)
        times, headings, speeds = table.T.contiguous()
    if not table.isfinite().all() or times[0] != 0 or (times.diff() <= 0).any() or (speeds < 0).any():
        raise ml.InputError(f"{path}: expected finite numbers, times that rise from 0, and no speed below 0")
    return times, torch.deg2rad(headings)[:, None].expand(-1, num_envs), speeds[:, None].expand(-1, num_envs)


def grid_commands(speed_range: Tuple[float, float], num_envs: int, device: str = "cpu") -> Tuple:
    """Constant speeds [m/s], the rows of a grid, after turns from the start's heading [degrees], its columns.
    -> commands as those of load_commands, a cell for each environment in turn; names of rows, and of columns"""
    rows = 4 if num_envs % 4 == 0 else 1
    speeds = torch.linspace(*speed_range, rows, device=device)
    turns = torch.linspace(-math.pi, math.pi, num_envs // rows + 1, device=device)[1:]
    commands = (0 * turns[:1], turns.repeat(rows)[None], speeds.repeat_interleave(len(turns))[None])
    return commands, [f"{x:.1f}" for x in speeds], [f"{x:.0f}" for x in torch.rad2deg(turns)]


# ---- 2. Episodes -----------------------------------------------------------------------------------------------------


def episode_limit(motions: ml.MotionLib, clip: Tensor, start: Tensor, dt: float, longest: int) -> Tensor:
    """Control steps of dt [s] an episode may last (E,): from start (E,) [s] to the end of a clip that does not loop."""
    left = ((motions.length[clip] - start) / dt).round().long().clamp(1, longest)
    return torch.where(motions.loop[clip], longest, left)


def averages(sums: Dict[str, Tensor], steps: Tensor, fell: Tensor, dt: float) -> Dict[str, float]:
    """Figures of episodes of `steps` (E,) control steps lived, fell (E,) bool, from sums (E,) over the steps taken."""
    figures = {"episodes": len(steps), "mean_episode_s": float(steps.float().mean()) * dt}
    figures["fall_rate"] = float(fell.float().mean())
    return {**figures, **{name: float(x.sum() / (steps + fell).sum()) for name, x in sums.items()}}


def episodes(states: List[ml.MotionState], steps: Tensor, fps: float) -> List[ml.Clip]:
    """Episodes as clips: T + 1 states of batch (E,), the start first; an episode lived through steps (E,) more."""
    roots = torch.stack([state.root_position for state in states], 1).cpu().numpy()  # (E, T + 1, 3)
    rotations = torch.stack([state.rotations for state in states], 1).cpu().numpy()
    lived = (steps + 1).clamp_min(2).tolist()  # the start and every step lived; at least one step, be it a fall
    return [ml.Clip(fps, "clamp", root[:n], q[:n]) for root, q, n in zip(roots, rotations, lived)]


def training_health(log: Dict[str, float], wanted: float) -> str:
    """What to know of these averages over many iterations, and try; wanted: forward speed [m/s]."""
    if min(log["disc/accuracy_demo"], log["disc/accuracy_agent"]) > 0.98 and log["reward/style"] < 0.02:
        return "the discriminator is always right, no style reward is left; raise --grad-penalty, lower --disc-updates"
    if log.get("episode/length", 0.0) > 100 and abs(log["episode/speed_m_s"]) < 0.2 * wanted:
        return "the character stands still while the clips move; lower --gamma, or give it a task that rewards speed"
    visits = [x for name, x in log.items() if name.startswith("eval/visits_")]
    if len(visits) > 1 and max(visits) > 0.95:
        return "nearly all poses are nearest to one clip; give the others more weight in the dataset"
    return ""
