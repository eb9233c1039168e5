"""Walk with an exported policy: python deploy/player.py policy.onnx [--heading 90] [--speed 1.2] [--headless]

It needs numpy, mujoco and onnxruntime, nothing of this repository. Exit code 1: it fell, 2: it cannot be used."""

import argparse
import json
import math
import os
import sys
import time

import mujoco.viewer
import numpy as np
import onnxruntime


def fallen(model: mujoco.MjModel, data: mujoco.MjData, about: dict) -> bool:
    """Whether a body of policy.json's list touches the floor (of body 0, the world), or the physics has broken down."""
    touching = {model.body(max(pair)).name for pair in model.geom_bodyid[data.contact.geom] if 0 in pair}
    return bool(touching & {*about["fall_bodies"]} or data.warning.number.any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="policy.onnx, with policy.xml and policy.json beside it")
    parser.add_argument("--heading", type=float, default=0.0, help="where to go, within 2 s, from +X to the left [deg]")
    parser.add_argument("--speed", type=float, default=1.2, help="how fast [m/s]; both only if the policy is told")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long at most (default 20)")
    parser.add_argument("--start", type=int, default=0, help="which of the states in policy.xml it starts from")
    parser.add_argument("--headless", action="store_true", help="no window, and as fast as it can")
    args = parser.parse_args()
    stem = args.policy.removesuffix(".onnx")
    try:
        session = onnxruntime.InferenceSession(open(f"{stem}.onnx", "rb").read(), providers=["CPUExecutionProvider"])
        about = json.load(open(f"{stem}.json", encoding="utf-8"))
        model = mujoco.MjModel.from_xml_path(f"{stem}.xml")
    except Exception as error:  # each of the three raises its own
        parser.exit(2, f"error: {args.policy}: {' '.join(str(error).split())}\n")
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, args.start % model.nkey)
    screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    window = screen and not args.headless and mujoco.viewer.launch_passive(model, data, show_left_ui=False)
    seen = {"qpos": data.qpos[None], "qvel": data.qvel[None], "command": np.array([[0.0, args.speed]])}  # live views
    while not (fell := fallen(model, data, about)) and data.time < args.seconds and (not window or window.is_running()):
        due = time.perf_counter() + 1.0 / about["control_hz"]
        seen["command"][0, 0] = math.radians(math.remainder(args.heading, 360.0)) * min(data.time / 2.0, 1.0)
        data.ctrl[:] = session.run(["targets"], {name: seen[name] for name in about["inputs"]})[0][0]
        mujoco.mj_step(model, data, about["substeps"])
        if window:
            window.cam.lookat[:] = data.qpos[:3]
            window.sync()
            time.sleep(max(due - time.perf_counter(), 0.0))
    print(f"{data.time:.1f} s, {np.hypot(*data.qpos[:2]):.1f} m away, {'it fell' if fell else 'no fall'}", flush=True)
    if window:  # its thread still draws, and taking the interpreter down beneath it crashes or hangs
        os._exit(int(fell))
    sys.exit(int(fell))


if __name__ == "__main__":
    main()
