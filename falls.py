"""What counts as a fall: contact with the ground of a body that the clips keep off it, near that time.

A script uses FallDetector. Dimension key: F frames of all clips, J bodies, N environments.
"""

from typing import Tuple

import torch
from torch import Tensor

from motion_lib import InputError, MotionLib, forward_kinematics, lowest_points

NEAR = 1.0  # what a clip that does not loop has on the ground may be there so much earlier or later [s]
TOUCH = 0.05  # a body that comes as near to the ground in a clip touches it [m]; a standing shin's end is .054 up
TOUCH_LYING = 0.1  # the same where others than feet touch: bodies on top, and clips that hover, are .05 to .09 up [m]


class FallDetector:
    """Tells which characters have fallen, by what the clip that they started in has on the ground near that time."""

    def __init__(self, motions: MotionLib, names: Tuple[str, ...], feet: Tuple[str, ...]) -> None:
        """names: ("auto",), all bodies but the feet and what a clip has on the ground; ("none",); or bodies, always.
        Raises InputError for other names."""
        bodies = motions.character.body_names
        self.motions = motions
        unknown = [name for name in names if name not in (*bodies, "none", "auto")]
        if unknown or not names or (len(names) != 1 and {"none", "auto"} & set(names)):
            raise InputError(f"--fall-bodies {' '.join(names)}: expected auto, none, or some of {', '.join(bodies)}")
        count = (motions.last + 1).tolist()  # frames of each clip
        auto = names == ("auto",)
        may_fall = torch.tensor([x not in feet if auto else x in names for x in bodies], device=motions.length.device)
        frames = enumerate(zip(motions.root_position.split(count), motions.rotations.split(count)))
        off = torch.cat([_off_ground(motions, i, may_fall, *x) for i, x in frames])  # (F, J) bool
        self.watched = off if auto else may_fall.expand_as(off)
        always = [name for name, x in zip(bodies, self.watched.all(0).tolist()) if x]
        self.bodies = int(self.watched.any(0).sum())  # how many count at one time or another
        others = [name for name in bodies if name not in always]
        what = ", ".join(always) if len(always) < len(others) else f"any body but {', '.join(others) or 'none'}"
        more = f", and {self.bodies - len(always)} more where a clip has them in the air" * (self.bodies > len(always))
        never = [file for file, x in zip(motions.files, self.watched.split(count)) if not x.any()]
        more += f"; nothing counts as a fall in {', '.join(never)[:300]}" * bool(never)
        own = [name for name, x in zip(bodies, (self.watched & ~off).any(0).tolist()) if x]
        more += f"; the clips themselves have {', '.join(own)} there, which ends episodes" * bool(own)
        self.report = f"a fall is ground contact of {what or 'no body always'}{more}"

    def __call__(self, clip: Tensor, time: Tensor, lowest: Tensor) -> Tensor:
        """clips (N,) long that episodes started in, times in them (N,) [s], lowest points (N, J) [m] -> (N,) bool."""
        motions = self.motions
        within = torch.where(motions.loop[clip], time % motions.length[clip], time)
        frame = (within * motions.fps[clip]).round().long().clamp_min(0).minimum(motions.last[clip])
        # PhysX may hold what lies on the ground a hair above it
        return ((lowest <= 0.005) & self.watched[motions.first[clip] + frame]).any(-1)


def _off_ground(motions: MotionLib, clip: int, may_fall: Tensor, root: Tensor, rotations: Tensor) -> Tensor:
    """Of those that may fall (J,), bodies that a clip keeps off the ground near each frame: (frames, J) bool."""
    near = lowest_points(motions.character, *forward_kinematics(motions.character, root, rotations))  # (frames, J) [m]
    if motions.loop[clip]:
        near = near.amin(0, keepdim=True).expand_as(near)
    else:  # the lowest from NEAR before to NEAR after: a sliding maximum of what lies below
        reach = int(NEAR * float(motions.fps[clip]))
        near = -torch.nn.functional.max_pool1d(-near.T[None], 2 * reach + 1, stride=1, padding=reach)[0].T
    lying = (near[:, may_fall] <= TOUCH).any(-1, keepdim=True)
    return (near > torch.where(lying, TOUCH_LYING, TOUCH)) & may_fall
