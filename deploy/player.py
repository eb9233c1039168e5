"""Walk with an exported policy. It needs numpy, mujoco and onnxruntime. Exit code 1: it fell, 2: it cannot be used.

If the policy takes commands, the arrow keys steer it in MuJoCo's window: left, right, faster, slower."""

import argparse
import math
import os
import sys
import time

import mujoco.viewer
import numpy as np
from walker import Walker

ARROWS = {263: (15.0, 0.0), 262: (-15.0, 0.0), 265: (0.0, 0.25), 264: (0.0, -0.25)}  # GLFW's keys: [deg], [m/s]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False)  # short errors
    add = parser.add_argument
    add("policy", help="policy.onnx, with policy.xml and policy.json beside it")
    add("--heading", type=float, default=0.0, help="where to go, from +X to the left [deg]")
    add("--speed", type=float, help="how fast [m/s] (about 1.2); both only if it takes commands")
    add("--headless", action="store_true", help="no window, as where no screen is: 20 s, fast")
    args = parser.parse_args()
    try:
        walker = Walker(args.policy)
        low, high = walker.speeds
        if not walker.commanded and (args.heading or args.speed is not None):
            raise ValueError("it takes no commands")
        if args.speed is not None and not low <= args.speed <= high:
            raise ValueError(f"it takes speeds from {low} to {high} m/s")
    except Exception as error:  # whatever the libraries raise
        parser.exit(2, f"error: {args.policy}: {' '.join(str(error).split())}\n")
    told = np.array([args.heading, np.clip(1.2, low, high) if args.speed is None else args.speed])  # [deg, m/s]

    def press(key: int) -> None:
        if key in ARROWS and walker.commanded:
            told[:] = np.clip(told + ARROWS[key], (-math.inf, low), (math.inf, high))
            print(f"told {math.remainder(told[0], 360.0):.0f} degrees, {told[1]:.2f} m/s", flush=True)

    data = walker.data
    mujoco.viewer.glfw.ERROR_REPORTING = False  # its answer is enough; the viewer would end the process
    screen = not args.headless and (sys.platform == "darwin" or mujoco.viewer.glfw.init())
    options = dict(show_left_ui=False, key_callback=press)
    window = mujoco.viewer.launch_passive(walker.model, data, **options) if screen else None
    up = True
    while up and (window.is_running() if window else data.time < 20.0):
        began = time.perf_counter()
        up = walker.step(math.radians(told[0]), told[1])
        if window:
            window.cam.lookat[:] = data.qpos[:3]
            window.sync()
            time.sleep(max(began + 1.0 / walker.about["control_hz"] - time.perf_counter(), 0.0))
    print(f"{data.time:.1f} s, {np.hypot(*data.qpos[:2]):.1f} m away, {'no fall' if up else 'it fell'}", flush=True)
    (os._exit if window else sys.exit)(int(not up))  # the window's thread still draws; ending as usual may hang


if __name__ == "__main__":
    main()
