"""benchmark/time_to_walk.py, as a whole: a walk that is reached at once, and one that is not."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("mujoco")

TINY = "--num-envs 4 --num-steps 4 --num-minibatches 2 --total-timesteps 320 --hidden 8 8 --disc-batch 8 --no-cuda"


@pytest.mark.parametrize("error, reached", [(2.0, True), (1e-9, False)])
def test_time_to_walk(root, tmp_path, error, reached):
    """In a tenth of a second nobody falls, and the pose error is some centimetres."""
    own = ["--seeds", "3", "--every", "16", "--error", str(error), "--out", str(tmp_path / "out.jsonl")]
    command = [sys.executable, str(root / "benchmark/time_to_walk.py"), *own, *TINY.split(), "--eval-seconds", "0.1"]
    done = subprocess.run(command, cwd=str(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert record["seed"] == 3 and record["error"] == error and "--seed 3" in record["command"]
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| 3 |", "| median |", "| worst |"))]
    assert len(rows) == 3
    if reached:
        assert 0 < record["seconds"] < 120 and 16 <= record["samples"] <= 320
        assert record["metrics"]["fall_rate"] == 0 and record["metrics"]["pose_error_m"] <= error
        assert f"{record['seconds']:.1f}" in rows[0] and "not reached" not in done.stdout
    else:
        assert record["seconds"] is None and record["samples"] is None
        assert all(row.count("not reached") >= 2 for row in rows)
    assert not (tmp_path / "runs").exists()  # trained elsewhere
