"""The double's cameras: a pinhole's view of a chequered ground, and a disc for each body of the env. Enough to see what moves."""

from typing import Any

from isaacgym._physics import from_exponential_map, rotate

import numpy as np

SKY, LIGHT, DARK, BODY = (170, 200, 230, 255), (140, 140, 140, 255), (90, 90, 90, 255), (200, 80, 40, 255)  # RGBA


class Camera:
    """Looks along +X of its frame, +Z up. Positions in the env's frame [m]."""

    def __init__(self, props: Any) -> None:
        self.focal = 0.5 * props.width / np.tan(np.radians(props.horizontal_fov) / 2.0)  # [pixels]
        self.image = np.zeros((props.height, props.width, 4), np.uint8)
        self.body, self.position, self.axes, self.turns = None, np.zeros(3), np.eye(3), False  # axes: forward, left, up

    def look(self, position: np.ndarray, target: np.ndarray) -> None:
        """Stand at a position (3,) and look at a target (3,)."""
        forward = (target - position) / np.linalg.norm(target - position)
        left = np.cross((0.0, 0.0, 1.0), forward)
        left = left / max(np.linalg.norm(left), 1e-9)
        self.body, self.position, self.axes = None, position, np.stack((forward, left, np.cross(forward, left)))

    def attach(self, body: int, position: np.ndarray, rotation: np.ndarray, turns: bool) -> None:
        """Follow a body at an offset: position (3,), rotation (4,) xyzw; in the body's frame if the camera turns with it."""
        self.body, self.position, self.axes, self.turns = (
            body,
            position,
            rotate(rotation[[3, 0, 1, 2]], np.eye(3)),
            turns,
        )

    def render(self, bodies: np.ndarray) -> None:
        """Draw bodies (L, 13) of the env."""
        eye, axes = self.position, self.axes
        if self.body is not None:
            turn = bodies[self.body, [6, 3, 4, 5]] if self.turns else from_exponential_map(np.zeros(3))
            eye, axes = bodies[self.body, :3] + rotate(turn, eye), rotate(turn, axes)
        height, width = self.image.shape[:2]
        row, column = np.mgrid[:height, :width]
        across, down = column - 0.5 * width, row - 0.5 * height
        ray = axes[0] - (across[..., None] * axes[1] + down[..., None] * axes[2]) / self.focal  # (H, W, 3)
        ground = ray[..., 2] < -1e-3
        hit = eye[:2] - eye[2] * ray[..., :2] / np.where(ground, ray[..., 2], -1.0)[..., None]
        self.image[:] = SKY
        self.image[ground] = LIGHT
        self.image[ground & (np.floor(hit).sum(-1) % 2 == 1)] = DARK
        for depth, left, up in (bodies[:, :3] - eye) @ axes.T:
            if depth > 0.01:
                scale = self.focal / depth
                self.image[(across + scale * left) ** 2 + (down + scale * up) ** 2 < (0.08 * scale) ** 2] = BODY
