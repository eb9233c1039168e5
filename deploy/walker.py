"""An exported policy in MuJoCo, for a program of yours: copy this file. It needs numpy, mujoco and onnxruntime.

walker = Walker("policy.onnx"), then walker.step(heading=1.57, speed=2.0) once for each control step; docs/deploy.md.
"""

import json
import math
import os

import mujoco
import numpy as np
import onnxruntime


class Walker:
    """A policy and its physics, MuJoCo's `model` and `data`; `about`: what policy.json says."""

    def __init__(self, path: str) -> None:
        """path: policy.onnx, with policy.xml and policy.json beside it. Raises ValueError, or what libraries raise."""
        stem = path.removesuffix(".onnx")
        for name in (f"{stem}.onnx", f"{stem}.xml", f"{stem}.json"):
            if not os.path.isfile(name):
                raise ValueError(f"there is no {name}; deploy/export.py writes .onnx, .xml and .json, side by side")
        self.policy = onnxruntime.InferenceSession(f"{stem}.onnx", providers=["CPUExecutionProvider"])
        self.model = mujoco.MjModel.from_xml_path(f"{stem}.xml")
        self.data = mujoco.MjData(self.model)
        with open(f"{stem}.json", encoding="utf-8") as file:
            self.about = json.load(file)
        digest = self.policy.get_modelmeta().custom_metadata_map.get("checkpoint_sha256", "none")
        if digest != self.about["checkpoint"]["sha256"] or digest.encode() not in self.model.text_data:
            raise ValueError("the .xml or .json beside it is of another policy; deploy/export.py writes all three")
        self.commanded = "command" in self.about["inputs"]  # whether it is told where to go, and how fast
        self.speeds = self.about.get("speed_range_m_s", [0.0, 0.0])  # least and greatest [m/s]
        self.falls = [self.model.body(name).id for name in self.about["fall_bodies"]]
        self.reset()

    def reset(self, start: int = 0) -> None:
        """Begin anew, in one of the eight states to start from; most policies face +X there."""
        mujoco.mj_resetDataKeyframe(self.model, self.data, start)
        self.heading = 0.0  # that it is told [rad]

    def step(self, heading: float = 0.0, speed: float = 1.2) -> bool:
        """A control step -> whether it is still up. Told: heading [rad, world, from +X to the left], speed [m/s]."""
        most = self.about.get("turn_rate_rad_s", 2.0) / self.about["control_hz"]  # told to turn faster, it may stumble
        self.heading += min(max(math.remainder(heading - self.heading, math.tau), -most), most)
        command = np.array([[self.heading, np.clip(speed, *self.speeds)]])
        seen = {"qpos": self.data.qpos[None], "qvel": self.data.qvel[None], "command": command}
        self.data.ctrl[:] = self.policy.run(["targets"], {name: seen[name] for name in self.about["inputs"]})[0][0]
        mujoco.mj_step(self.model, self.data, self.about["substeps"])
        pairs = self.model.geom_bodyid[self.data.contact.geom]  # bodies that touch; the floor's, 0, comes first
        diverged = self.data.warning.number.any()
        return not (diverged or any(a == 0 and b in self.falls for a, b in pairs))
