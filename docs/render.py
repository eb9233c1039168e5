"""Draw poses of a clip side by side, as a film strip that reads from left to right: docs/walk.png is one.

    python docs/render.py CLIP.npz OUT.png [--start S] [--seconds S] [--poses N]

CLIP is any file in the format of motions/README.md: a clip in motions/ or a roll-out that `--evaluate` has written. Right limbs are orange,
left ones blue. It needs MuJoCo, and an OpenGL that draws without a screen: EGL or OSMesa (the environment variable MUJOCO_GL picks one).
Dimension key: P poses, J bodies (row 0 is the root).
"""

import argparse
import ctypes.util
import math
import os
import sys
import xml.etree.ElementTree as ET

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import motion_lib as ml

ROOT = os.path.dirname(os.path.abspath(ml.__file__))
COLOURS = {"right": "0.90 0.50 0.20 1", "left": "0.25 0.47 0.72 1", "": "0.78 0.79 0.82 1"}
MARGIN = 0.12  # free space to either side of the outermost characters, as a share of their distance from one another
SCENE = """<mujoco>
  <statistic center="0 0 0.8" extent="4"/>
  <visual>
    <global offwidth="{width}" offheight="{height}"/>
    <quality shadowsize="8192" offsamples="16"/>
    <headlight ambient="0.48 0.48 0.48" diffuse="0.30 0.30 0.30" specular="0 0 0"/>
    <map znear="0.5" zfar="40"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="1 1 1" rgb2="1 1 1" width="16" height="96"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.97 0.97 0.97" rgb2="0.87 0.88 0.90" width="512" height="512"/>
    <material name="floor" texture="floor" texrepeat="1 1" texuniform="true" specular="0" shininess="0"/>
  </asset>
  <worldbody>
    <light type="directional" pos="-3 -4 6" dir="0.35 0.5 -1" diffuse="0.42 0.42 0.42" specular="0.1 0.1 0.1" castshadow="true"/>
    <geom type="plane" size="30 3 1" material="floor"/>
    <camera name="side" pos="0 {camera_y} {camera_z}" xyaxes="1 0 0 0 {tilt_sin} {tilt_cos}" fovy="{fovy}"/>
    {bodies}
  </worldbody>
</mujoco>
"""


def poses_of(clip, character, start: float, seconds: float, count: int):
    """World position and rotation of every body in `count` frames of the clip, its way through the window turned into +X.

    -> (P, J, 3), (P, J, 4) xyzw; the characters still stand where the clip has them."""
    first, last = round(start * clip.fps), round((start + seconds) * clip.fps)
    last = min(last, len(clip.root_position) - 1)
    if not 0 <= first < last:
        raise ValueError(
            f"--start {start} lies outside the clip, which is {(len(clip.root_position) - 1) / clip.fps:.2f} s long"
        )
    frames = np.linspace(first, last, count).round().astype(int)
    root, rotations = (
        torch.as_tensor(clip.root_position[frames]).float(),
        torch.as_tensor(clip.rotations[frames]).float(),
    )
    way = torch.as_tensor(clip.root_position[last] - clip.root_position[first])
    # a character that stays where it is shows its right side in the first pose
    yaw = torch.atan2(way[1], way[0]).float() if way[:2].norm() > 0.3 else ml.heading(rotations[0, 0])
    turn = ml.quat_from_yaw(-yaw)
    rotations = torch.cat((ml.quat_multiply(turn.expand(count, 4), rotations[:, 0])[:, None], rotations[:, 1:]), 1)
    return ml.forward_kinematics(character, ml.quat_rotate(turn.expand(count, 4), root), rotations)


def statues(character, position, rotation) -> str:
    """MJCF of one rigid body for each body of each pose, with the geoms of the character's file."""
    source = {body.get("name"): body.findall("geom") for body in ET.parse(character.path).iter("body")}
    lines = []
    for p, q in zip(position, rotation):
        for j, name in enumerate(character.body_names):
            colour = COLOURS.get(name.split("_")[0], COLOURS[""])
            x, y, z, w = q[j].tolist()
            lines.append(f'<body pos="{p[j][0]} {p[j][1]} {p[j][2]}" quat="{w} {x} {y} {z}">')
            for geom in source[name]:
                shape = {key: geom.get(key) for key in ("type", "size", "pos", "fromto") if geom.get(key)}
                lines.append(ET.tostring(ET.Element("geom", shape, rgba=colour), encoding="unicode"))
            lines.append("</body>")
    return "\n".join(lines)


def scene_of(character, position, rotation, width: int, height: int) -> str:
    """MJCF of the characters in a row along X, evenly spaced, and of a camera that has them all in view."""
    count = len(position)
    reach = float((position[..., 0] - position[:, :1, 0]).abs().max()) + 0.15  # furthest body from its root along X [m]
    spacing = max(0.95, 1.5 * reach)
    row = (torch.arange(count) - 0.5 * (count - 1)) * spacing
    row = torch.stack((row, torch.zeros(count), torch.zeros(count)), -1)
    position = position + (row - position[:, 0] * torch.tensor([1.0, 1.0, 0.0]))[:, None]
    top, margin = max(float(position[..., 2].max()) + 0.3, 1.2), 0.22  # [m]
    # The view is as wide as the row and as high as the tallest pose; a far camera with a small angle leaves no perspective to speak of.
    wide = max((count - 1) * spacing + 2 * (reach + MARGIN * spacing), (top + 2 * margin) * width / height)
    high = wide * height / width
    tilt, fovy = math.radians(7), math.radians(5)
    distance, centre = 0.5 * high / math.tan(0.5 * fovy), 0.5 * top
    return SCENE.format(
        width=width,
        height=height,
        camera_y=-distance * math.cos(tilt),
        camera_z=centre + distance * math.sin(tilt),
        tilt_sin=math.sin(tilt),
        tilt_cos=math.cos(tilt),
        fovy=math.degrees(fovy),
        bodies=statues(character, position, rotation),
    )


def draw(xml: str, width: int, height: int) -> np.ndarray:
    """Render the scene's camera: (height, width, 3) uint8. Raises RuntimeError, with what to install, when there is no OpenGL."""
    if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):  # MuJoCo's own choice there needs a screen
        os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "osmesa"
    try:
        import mujoco  # reads MUJOCO_GL

        model = mujoco.MjModel.from_xml_string(xml)
        renderer = mujoco.Renderer(model, height, width)
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}; pip install -r requirements.txt, with Python 3.10 or newer") from error
    except Exception as error:  # each way of having no OpenGL raises something else
        raise RuntimeError(
            f"no OpenGL to draw without a screen (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {str(error).splitlines()[0][:120]}); "
            "on Debian or Ubuntu: apt-get install libosmesa6, then set MUJOCO_GL=osmesa"
        ) from error
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, "side")
    image = renderer.render()
    renderer.close()
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="clip file (.npz)")
    parser.add_argument("out", help="picture to write (.png)")
    parser.add_argument("--start", type=float, default=0.0, help="first pose [s] (default 0)")
    parser.add_argument(
        "--seconds", type=float, default=1.2, help="time from the first to the last pose [s] (default 1.2)"
    )
    parser.add_argument("--poses", type=int, default=7, help="how many (default 7)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1200, 400), metavar=("W", "H"), help="of the picture (default 1200 400)"
    )
    parser.add_argument(
        "--character-file", default=os.path.join(ROOT, "motions/humanoid.xml"), help="the character (MJCF)"
    )
    args = parser.parse_args()
    try:
        if args.poses < 1 or min(args.size) < 16 or not args.seconds > 0:
            raise ValueError("--poses, --size and --seconds have to be positive")
        if not args.out.endswith(".png"):
            raise ValueError(f"{args.out}: expected a name that ends in .png")
        character = ml.load_character(args.character_file)
        clip = ml.load_clip(args.clip, character.body_names)
        position, rotation = poses_of(clip, character, args.start, args.seconds, args.poses)
        width, height = args.size
        image = draw(scene_of(character, position, rotation, 2 * width, 2 * height), 2 * width, 2 * height)
        from PIL import Image  # comes with TensorBoard

        # drawn at twice the size: smooth edges
        Image.fromarray(image).resize((width, height), Image.LANCZOS).save(args.out, optimize=True)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
