"""Walk with an exported policy: python deploy/player.py policy.onnx [--heading 90] [--speed 1.2] [--headless].
It needs numpy, mujoco and onnxruntime, nothing of this repository. Exit code 1: it fell, 2: it cannot be used."""

import argparse
import json
import os
import sys
import time

import mujoco.viewer
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False)  # one-line errors
parser.add_argument("policy", help="policy.onnx, with policy.xml and policy.json beside it")
parser.add_argument("--heading", type=float, default=0.0, help="where to go, within 2 s, from +X to the left [deg]")
parser.add_argument("--speed", type=float, default=1.2, help="how fast [m/s]; both only if the policy is told")
parser.add_argument("--seconds", type=float, default=20.0, help="how long at most (default 20)")
parser.add_argument("--start", type=int, default=0, help="which of the states in policy.xml it starts from")
parser.add_argument("--headless", action="store_true", help="no window, and as fast as it can")
args = parser.parse_args()
stem = args.policy.removesuffix(".onnx")
try:
    if stem == args.policy or not os.path.exists(args.policy):
        fault = "not an .onnx file" if os.path.exists(args.policy) else "there is no policy.onnx of this name"
        raise ValueError(f"{fault}; deploy/export.py writes it")
    session = onnxruntime.InferenceSession(open(args.policy, "rb").read(), providers=["CPUExecutionProvider"])
    about = json.load(open(f"{stem}.json", encoding="utf-8"))
    model = mujoco.MjModel.from_xml_path(f"{stem}.xml")
    if not 0 <= args.start < model.nkey:
        raise ValueError(f"--start {args.start}: it has {model.nkey} states to start from, 0 to {model.nkey - 1}")
    if "command" not in about["inputs"] and (args.heading, args.speed) != (0.0, 1.2):
        raise ValueError("it takes no commands: leave out --heading and --speed")
    low, high = about.get("speed_range_m_s", (args.speed, args.speed))
    if not low <= args.speed <= high:
        raise ValueError(f"--speed {args.speed}: it learned speeds from {low} to {high} m/s")
except Exception as error:  # whatever the three libraries raise
    parser.exit(2, f"error: {args.policy}: {' '.join(str(error).split())}\n")
data = mujoco.MjData(model)
mujoco.mj_resetDataKeyframe(model, data, args.start)
mujoco.viewer.glfw.ERROR_REPORTING = False  # it answers instead; the viewer ends the process where no screen is
screen = args.headless or sys.platform == "darwin" or mujoco.viewer.glfw.init() or print("no screen: no window")
window = screen and not args.headless and mujoco.viewer.launch_passive(model, data, show_left_ui=False)
seen = {"qpos": data.qpos[None], "qvel": data.qvel[None], "command": np.array([[0.0, args.speed]])}  # live views
fell = False
while not fell and data.time < args.seconds and (not window or window.is_running()):
    due = time.perf_counter() + 1.0 / about["control_hz"]
    seen["command"][0, 0] = np.radians(180.0 - (180.0 - args.heading) % 360.0) * min(data.time / 2.0, 1.0)
    data.ctrl[:] = session.run(["targets"], {name: seen[name] for name in about["inputs"]})[0][0]
    mujoco.mj_step(model, data, about["substeps"])
    touch = {model.body(max(pair)).name for pair in model.geom_bodyid[data.contact.geom] if 0 in pair}  # 0: world
    fell = bool(touch & {*about["fall_bodies"]} or data.warning.number.any())
    if window:
        window.cam.lookat[:] = data.qpos[:3]
        window.sync()
        time.sleep(max(due - time.perf_counter(), 0.0))
print(f"{data.time:.1f} s, {np.hypot(*data.qpos[:2]):.1f} m away, {'it fell' if fell else 'no fall'}", flush=True)
(os._exit if window else sys.exit)(int(fell))  # the window's thread still draws: to end it with Python may hang
