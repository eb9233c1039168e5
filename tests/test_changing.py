"""docs/changing.md: its examples, as they stand there, are trainings."""

import json
import re
import shlex
import shutil
import subprocess

import pytest

pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")

import amp_ppo_isaacgym as amp

TINY = "--no-cuda --num-envs 16 --num-steps 8 --num-minibatches 2 --total-timesteps 2048 --hidden 16 16 --disc-batch 64"
TINY += " --clone-updates 2 --replay-size 512 --eval-episodes 2 --eval-seconds 0.2"


@pytest.mark.skipif(shutil.which("patch") is None, reason="no patch on this machine")
def test_the_example_of_another_loss(root, run_script, tmp_path):
    """The diff applies without fuzz, the copy trains with the new loss, and what it learns is evaluated as its own."""
    manual = (root / "docs/changing.md").read_text(encoding="utf-8")
    (diff,) = re.findall("```diff\n(.*?)```", manual, re.DOTALL)
    (tmp_path / "hinge.diff").write_text(diff, encoding="utf-8")
    copy = tmp_path / "my_amp.py"
    shutil.copy(root / "amp_ppo_isaacgym.py", copy)
    command = ["patch", "--fuzz=0", "my_amp.py", "hinge.diff"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    loss = ("--disc-loss", "hinge")
    code, _, err = run_script("amp_ppo_isaacgym.py", *TINY.split(), *loss)
    assert code == 2 and "it takes one of bce, lsgan" in err
    code, out, err = run_script(copy, *TINY.split(), *loss)
    assert code == 0, err
    assert 0.0 < json.loads(out.splitlines()[-1])["style_reward"] < 1.0
    (run,) = (tmp_path / "runs").iterdir()
    code, out, err = run_script(copy, "--no-cuda", "--evaluate", "--checkpoint", run)
    assert code == 0 and json.loads(out.splitlines()[-1])["episodes"] == 2, err
    code, _, err = run_script("amp_ppo_isaacgym.py", "--no-cuda", "--evaluate", "--checkpoint", run)
    assert code == 2 and "my_amp" in err and amp.KIND in err


@pytest.mark.skipif(shutil.which("sed") is None, reason="no sed on this machine")
def test_the_example_of_another_character(root, run_script, tmp_path):
    """Its commands, with small sizes: a character with longer legs, a clip for it, a look at it, a training."""
    pytest.importorskip("mink", reason="pip install -r requirements-motions.txt")
    pytest.importorskip("viser", reason="pip install -r requirements-test.txt")
    section = (root / "docs/changing.md").read_text(encoding="utf-8").split("\n## Another character\n")[1]
    (block,) = re.findall("```bash\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    (tmp_path / "motions").mkdir()
    for name in ("motions/humanoid.xml", "motions/walk.npz"):
        shutil.copy(root / name, tmp_path / name)
    added = {"motions/view.py": ["--html", "tall.html"], "amp_ppo_isaacgym.py": TINY.split()}
    said = []
    for line in block.splitlines():
        if line.startswith("sed"):
            subprocess.run(line, shell=True, cwd=tmp_path, check=True)
            continue
        _, script, *words = shlex.split(line)
        code, out, err = run_script(script, *words, *added.get(script, []))
        assert code == 0, (line, err)
        said.append(out + err)
    assert len(said) == 4 and "feet planted" in said[1] and "ground" not in said[1] and "limit" not in said[1]
    assert "a fall is ground contact of any body but right_foot, left_foot" in said[3]
    plain = run_script("motions/convert.py", "motions/walk.npz", "x.npz", "--character-file", "tall.xml")
    assert "reaches 16 cm into the ground" in plain.out
