"""A strict test double of NVIDIA Isaac Gym Preview 4's Python API: MuJoCo moves the bodies, gymapi.py raises on every broken rule.

Put its parent folder on PYTHONPATH and `from isaacgym import gymapi, gymtorch` finds it. It is written from the public behaviour of the
API, for tests only: none of NVIDIA's code is in it, and what it does not need for this repository it does not offer."""

import sys

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules. Please import torch after isaacgym modules.")
