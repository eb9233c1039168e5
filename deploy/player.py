"""Walk with an exported policy. It needs numpy, mujoco and onnxruntime. Exit code 1: it fell, 2: it cannot be used."""

import argparse
import json
import os
import sys
import time

import mujoco.viewer
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False)  # short errors
parser.add_argument("policy", help="policy.onnx, with policy.xml and policy.json beside it")
parser.add_argument("--heading", type=float, default=0.0, help="where to go, from +X to the left [deg]")
parser.add_argument("--speed", type=float, help="how fast [m/s] (about 1.2); both only if it takes commands")
parser.add_argument("--headless", action="store_true", help="no window, as where no screen is: 20 s, fast")
args = parser.parse_args()
stem = args.policy.removesuffix(".onnx")
try:
    for name in (f"{stem}.onnx", f"{stem}.xml", f"{stem}.json"):
        if not os.path.isfile(name):
            raise ValueError(f"there is no {name}; deploy/export.py writes .onnx, .xml and .json, side by side")
    session = onnxruntime.InferenceSession(f"{stem}.onnx", providers=["CPUExecutionProvider"])
    model = mujoco.MjModel.from_xml_path(f"{stem}.xml")
    about = json.load(open(f"{stem}.json", encoding="utf-8"))
    digest = session.get_modelmeta().custom_metadata_map.get("checkpoint_sha256", "none")
    if digest != about["checkpoint"]["sha256"] or digest.encode() not in model.text_data:
        raise ValueError("the .xml or .json beside it is of another policy; deploy/export.py writes all three")
    if "command" not in about["inputs"] and (args.heading or args.speed is not None):
        raise ValueError("it takes no commands")
    low, high = about.get("speed_range_m_s", (1.2, 1.2))  # without commands it does not matter
    speed = min(max(1.2, low), high) if args.speed is None else args.speed
    if not low <= speed <= high:
        raise ValueError(f"it takes speeds from {low} to {high} m/s")
except Exception as error:  # whatever the three libraries raise
    parser.exit(2, f"error: {args.policy}: {' '.join(str(error).split())}\n")
data = mujoco.MjData(model)
mujoco.mj_resetDataKeyframe(model, data, 0)  # one of the states to start from
mujoco.viewer.glfw.ERROR_REPORTING = False  # its answer is enough; the viewer would end the process
screen = not args.headless and (sys.platform == "darwin" or mujoco.viewer.glfw.init())
window = mujoco.viewer.launch_passive(model, data, show_left_ui=False) if screen else None
fell = False
while not fell and (window.is_running() if window else data.time < 20.0):
    began = time.perf_counter()
    turned = about.get("turn_rate_rad_s", 2.0) * data.time  # as far as it may be told to turn
    heading = np.clip(np.radians(args.heading), -turned, turned)
    seen = {"qpos": data.qpos[None], "qvel": data.qvel[None], "command": np.array([[heading, speed]])}
    data.ctrl[:] = session.run(["targets"], {name: seen[name] for name in about["inputs"]})[0][0]
    mujoco.mj_step(model, data, about["substeps"])
    pairs = model.geom_bodyid[data.contact.geom]  # bodies that touch; the floor's, 0, comes first; or it diverged
    fell = any(a == 0 and model.body(b).name in about["fall_bodies"] for a, b in pairs) or data.warning.number.any()
    if window:
        window.cam.lookat[:] = data.qpos[:3]
        window.sync()
        time.sleep(max(began + 1.0 / about["control_hz"] - time.perf_counter(), 0.0))
print(f"{data.time:.1f} s, {np.hypot(*data.qpos[:2]):.1f} m away, {'it fell' if fell else 'no fall'}", flush=True)
(os._exit if window else sys.exit)(int(fell))  # the window's thread still draws; ending as usual may hang
