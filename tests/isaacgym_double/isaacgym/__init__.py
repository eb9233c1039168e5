"""A strict test double of NVIDIA Isaac Gym Preview 4's Python API: MuJoCo moves the bodies, every broken rule raises.

Put its parent folder on PYTHONPATH and `from isaacgym import gymapi, gymtorch` finds it. It is written from the public
behaviour of the API, for tests only: none of NVIDIA's code is in it. It offers what this repository needs, and no more:
no cameras, for instance, since nothing is drawn."""

import sys

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules. Please import torch after isaacgym modules.")
