"""report: roll-outs, pictures, films, and all that an evaluation writes."""

import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluation
import motion_lib as ml
import report

pytestmark = pytest.mark.drawn

# ---- What an evaluation writes ---------------------------------------------------------------------------------------


def clips_of(motions, *lengths):
    """Clips of that many frames, from the start of the first clip on."""
    first = motions.clips[0]
    return [ml.Clip(30.0, "clamp", first.root_position[:n], first.rotations[:n]) for n in lengths]


def test_roll_outs(tmp_path, walk):
    folder = tmp_path / "new/latest_rollouts"
    clips = clips_of(walk, 5, 9)
    report.write_rollouts(str(folder), clips, walk.character.body_names, "roll-out of latest.pt")
    assert sorted(os.listdir(folder)) == ["000.npz", "001.npz"]
    for n, clip in enumerate(clips):
        back = ml.load_clip(str(folder / f"00{n}.npz"), walk.character.body_names)
        assert (back.fps, back.loop, len(back.rotations)) == (30.0, "clamp", len(clip.rotations))
        np.testing.assert_allclose(back.root_position, clip.root_position, atol=1e-6)
    with np.load(folder / "000.npz", allow_pickle=False) as file:
        assert str(file["source"]) == "roll-out of latest.pt" and str(file["license"]) == "as the clips it imitates"


def test_nothing_that_is_there_is_touched(tmp_path, walk):
    """Roll-outs go into a folder that is made for them, and an evaluation's folder gets a name of its own."""
    (tmp_path / "000.npz").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        report.write_rollouts(str(tmp_path), clips_of(walk, 5), walk.character.body_names, "a test")
    assert (tmp_path / "000.npz").read_bytes() == b"old" and os.listdir(tmp_path) == ["000.npz"]
    names = [report.new_folder(str(tmp_path / "a/b")) for _ in range(3)]
    assert [os.path.relpath(name, tmp_path) for name in names] == ["a/b", "a/b-2", "a/b-3"]
    os.symlink("nowhere", tmp_path / "link")
    assert report.new_folder(str(tmp_path / "link")) == str(tmp_path / "link-2")
    assert report.new_folder(f"{tmp_path}/a/b/") == str(tmp_path / "a/b-4")  # beside it, and not in it


def test_many_roll_outs_are_in_order(tmp_path, walk, monkeypatch):
    names = []
    monkeypatch.setattr(report, "save_clip", lambda path, *_: names.append(os.path.basename(path)))
    report.write_rollouts(str(tmp_path / "a"), clips_of(walk, *[2] * 1001), walk.character.body_names, "a test")
    assert names[:2] == ["000.npz", "001.npz"] and names[999:] == ["999.npz", "1000.npz"]


def judged(walk, tmp_path, **options):
    """What report.write has written of an evaluation of two episodes -> its folder."""
    args = SimpleNamespace(motion_file="motions/walk.npz", capture_video=False, evaluate=True, out=None)
    vars(args).update(eval_seconds=8 / 30, control_hz=30)
    vars(args).update(options)
    metrics = {"episodes": 2, "pose_error_m": 0.01234567}
    result = evaluation.Result(metrics, clips_of(walk, 5, 9), torch.rand(8, 14), {})
    return Path(report.write(args, walk, result, str(tmp_path / "latest.pt")))


@pytest.mark.parametrize("filmed", [True, False])
def test_all_that_an_evaluation_writes(tmp_path, monkeypatch, capsys, walk, filmed):
    films = []
    monkeypatch.setattr(report, "film", lambda *arguments: films.append(arguments))
    (tmp_path / "args.json").write_text("{}")  # it is the folder of a run
    folder = judged(walk, tmp_path, capture_video=filmed, eval_commands="course.csv")
    assert folder.parent == tmp_path and re.fullmatch(r"latest_\d{8}-\d{6}", folder.name)
    assert sorted(os.listdir(folder)) == ["figures.json", "pose_error.png", "rollouts"]
    assert sorted(os.listdir(folder / "rollouts")) == ["000.npz", "001.npz"]
    with np.load(folder / "rollouts/000.npz", allow_pickle=False) as file:  # 4 steps of 8
        assert str(file["source"]) == f"roll-out of {tmp_path.name}/latest.pt, fell after 0.1 s"
    with np.load(folder / "rollouts/001.npz", allow_pickle=False) as file:
        assert str(file["source"]) == f"roll-out of {tmp_path.name}/latest.pt" and len(file["rotations"]) == 9
    written = json.loads((folder / "figures.json").read_text())
    assert written["figures"] == {"episodes": 2, "pose_error_m": 0.01234567}
    assert written["checkpoint"] == str(tmp_path / "latest.pt")
    assert capsys.readouterr() == ("", "filming 5 pictures\n" * filmed)
    expected = [(str(folder / "film.mp4"), str(folder / "rollouts/000.npz"), walk, "course.csv", False)]
    assert films == (expected if filmed else [])
    again = judged(walk, tmp_path)
    assert again != folder and sorted(os.listdir(again)) == ["figures.json", "pose_error.png", "rollouts"]


def test_where_an_evaluation_is_to_be_written(tmp_path, walk, monkeypatch):
    assert judged(walk, tmp_path, out=str(tmp_path / "mine/first")) == tmp_path / "mine/first"
    assert judged(walk, tmp_path, out=str(tmp_path / "mine/first")) == tmp_path / "mine/first-2"
    assert len(os.listdir(tmp_path / "mine/first/rollouts")) == 2 and os.listdir(tmp_path) == ["mine"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # a policy that lies in no run's folder stays alone there
    assert re.fullmatch(r"runs/evaluations/latest_\d{8}-\d{6}", str(judged(walk, tmp_path)))
    assert sorted(os.listdir(tmp_path)) == ["here", "mine"] and os.listdir("runs") == ["evaluations"]


def test_an_evaluation_on_a_full_disk_is_said_and_costs_nothing_else(tmp_path, walk, monkeypatch, capsys):
    (tmp_path / "file").write_text("old")
    judged(walk, tmp_path, out=str(tmp_path / "file/folder"))
    assert capsys.readouterr().err.count("the figures stand, but not all could be written") == 3
    assert (tmp_path / "file").read_text() == "old"


# ---- The page ----


def test_an_evaluation_has_a_page(tmp_path, walk, monkeypatch, capsys):
    """By the viewer, of the first roll-out over the clip."""
    pytest.importorskip("viser", reason="pip install -r requirements-test.txt")
    monkeypatch.delenv("AMP_PAGE")
    folder = judged(walk, tmp_path)
    page = (folder / "index.html").read_text()
    assert capsys.readouterr() == ("", "") and "clip motions/walk" in page
    assert f"policy {tmp_path.name}/latest.pt" in page
    assert "2 episodes, no falls, pose error .012\\u00a0m, speed - of .97\\u00a0m/s" in page


def test_a_page_is_of_one_clip(tmp_path, walk, all_motions, monkeypatch):
    """It ends as the roll-out fell, shows 10 s at most, and of a course, which it draws, 20 s."""
    asked = []
    fell = clips_of(walk, 32)[0]
    whole = fell._replace(fps=1.0)  # 31 s
    monkeypatch.delenv("AMP_PAGE")
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(report, "_ask", lambda out, command: asked.append(command))
    for clip, motions, told in ((fell, walk, None), (whole, all_motions, None), (whole, all_motions, "course.csv")):
        report.page("a/index.html", "a/rollouts/000.npz", clip, motions, "-1 m", told)
    one, many, course = asked
    lengths = [command[command.index("--seconds") + 1] for command in asked]
    assert lengths == ["1.0333", "10.0000", "20.0000"] and all("--text=-1 m" in command for command in asked)
    assert course[course.index("--commands") + 1] == "course.csv" and "--commands" not in one + many
    assert one[:3] == [report.VIEW, "a/rollouts/000.npz", walk.files[0]] and "beside" in one
    assert many[:3] == [report.VIEW, "a/rollouts/000.npz", "--layout"]


def test_without_viser_one_line_says_what_to_install(tmp_path, walk, monkeypatch, capsys):
    monkeypatch.delenv("AMP_PAGE")
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None if name == "viser" else name)
    folder = judged(walk, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install viser trimesh" in line
    assert sorted(os.listdir(folder)) == ["figures.json", "pose_error.png", "rollouts"]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, which are written all the same."""
    drawn = []
    write = report._write_figure

    def keep(path, figure):
        drawn.append(figure)
        write(path, figure)

    monkeypatch.setattr(report, "_write_figure", keep)
    return drawn


def check_png(path):
    from matplotlib.image import imread

    image = imread(str(path))
    assert image.shape[0] > 300 and image.shape[1] > 400 and image.std() > 0.05
    assert os.listdir(path.parent) == [path.name]


def test_picture_of_the_bodies_errors(tmp_path, figures):
    errors = torch.tensor([[0.1, 0.2], [0.3, math.nan], [0.2, 0.4]])  # (T, J-1)
    report.plot_body_errors(str(tmp_path / "a.png"), errors, ["head", "hand"], 0.5, "a walk")
    axes, scale = figures[0].axes
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), errors.T.numpy())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["head .200", "hand .300"]
    assert axes.images[0].get_extent() == [0.0, 1.5, 1.5, -0.5]
    cells = {text.get_position(): text.get_text() for text in axes.texts}  # the means of three parts, of two bodies
    assert cells == {(0.25, 0): ".100", (0.75, 0): ".300", (1.25, 0): ".200"} | {
        (0.25, 1): ".200",
        (0.75, 1): "-",
        (1.25, 1): ".400",
    }
    assert axes.get_title() == "a walk"
    assert axes.get_xlabel() == "time [s]" and scale.get_ylabel() == "pose error [m]"
    check_png(tmp_path / "a.png")


def test_the_means_of_body_errors_stand_where_they_belong(tmp_path, figures):
    """Of nine steps in eight parts the first part has two."""
    report.plot_body_errors(str(tmp_path / "a.png"), torch.ones(9, 1), ["head"], 0.5)
    places = [text.get_position() for text in figures[0].axes[0].texts]
    assert places == [(0.5, 0), *((1.25 + 0.5 * n, 0) for n in range(7))]


@pytest.mark.parametrize("lived", [0, 1, 3])
def test_picture_of_body_errors_ends_when_all_have_fallen(tmp_path, figures, lived):
    """Five steps, of which the last are nobody's; with none at all a step is left."""
    errors = torch.full((5, 2), math.nan)
    errors[:lived] = 0.1
    report.plot_body_errors(str(tmp_path / "a.png"), errors, ["head", "hand"], 0.5)
    axes, scale = figures[0].axes
    assert axes.images[0].get_extent() == [0.0, 0.5 * max(lived, 1), 1.5, -0.5]
    assert [text.get_text() for text in axes.texts] == [".100" if lived else "-"] * 2 * max(lived, 1)
    assert all(re.fullmatch(r"-?\.\d{3}|-", label.get_text()) for label in scale.get_yticklabels())


def test_picture_of_a_table(tmp_path, figures):
    table = [[0.0, 0.256, 1.0], [0.5, 0.75, math.nan]]
    report.plot_table(str(tmp_path / "a.png"), table, ["1.0", "2.0"], ["-90", "0", "90"], "return", "a test", 1.0)
    axes, scale = figures[0].axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): ".00", (1, 0): ".26", (2, 0): "1.00", (0, 1): ".50", (1, 1): ".75", (2, 1): "-"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-90", "0", "90"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1.0", "2.0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("turn [degrees]", "speed [m/s]")
    assert (scale.get_ylabel(), axes.get_title()) == ("return", "a test") and axes.images[0].get_clim() == (0, 1)
    for text in axes.texts:  # it can be read: bright on dark, dark on bright
        x, y = text.get_position()
        red, green, blue, opacity = axes.images[0].to_rgba(np.array([table[y][x]]))[0]
        bright = opacity == 0 or red + green + blue > 1.5
        assert text.get_color() == ("black" if bright else "white")
    check_png(tmp_path / "a.png")


@pytest.mark.parametrize("draw", ["plot_body_errors", "plot_table"])
def test_pictures_are_written_as_a_whole(tmp_path, monkeypatch, capsys, draw):
    """And an OSError, such as that of a full disk, reaches the caller, and is said of an evaluation's grids."""
    arguments = {
        "plot_body_errors": (torch.ones(2, 1), ["head"], 0.1),
        "plot_table": ([[0.5]], ["a"], ["b"], "c", "d", 1.0),
    }[draw]
    written = {}
    monkeypatch.setattr(report, "write_file", written.__setitem__)
    getattr(report, draw)("a.png", *arguments)
    assert written["a.png"].startswith(b"\x89PNG") and written["a.png"].endswith(b"IEND\xaeB`\x82")
    monkeypatch.undo()
    with pytest.raises(OSError):
        getattr(report, draw)(str(tmp_path / "none/a.png"), *arguments)
    report.plot_grid(str(tmp_path / "none"), {}, [], [])
    assert "the figures stand, but not all could be written" in capsys.readouterr().err


def test_the_grids_say_what_they_are_and_one_bad_cell_does_not_hide_the_others(tmp_path, figures):
    """Of a run's checkpoint, without the options in its folder's name; half of the scale is in use, or 5 degrees."""
    checkpoint = "runs/locomotion__seed-2__heading__20261126-013402/best.pt"
    (tmp_path / "figures.json").write_text(json.dumps({"checkpoint": checkpoint}))
    courses = torch.tensor([4.0, 6.0, 8.0, 10.0, 12.0, 6.0, 4.0, 10.0, 6.0, 88.0, math.nan, 5.0])
    episodes = {"task_return": torch.linspace(0, 1, 12), "course_error_deg": courses}
    for case in (episodes, {**episodes, "course_error_deg": courses / 100}):
        report.plot_grid(str(tmp_path), case, ["1.0", "2.0", "3.0"], ["0", "90", "180", "270"])
    first, worst, _, least = figures
    axes, scale = worst.axes
    assert axes.get_title() == (
        "locomotion (best.pt): a test of its own,\nin each cell an episode with a constant command"
    )
    assert scale.get_ylabel() == "course error [degrees]" and axes.images[0].get_clim() == (0, 12)
    assert [text.get_text() for text in axes.texts][-3:] == ["88", "-", "5"]
    assert first.axes[0].images[0].get_clim() == (0, 1) and least.axes[0].images[0].get_clim() == (0, 5)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["grid.png", "grid_course.png"]


def test_errors_are_of_joints(tmp_path, walk, figures):
    """A body of the humanoid is where its joint is: a thigh's is the hip's; a hand, which has none, keeps its name."""
    judged(walk, tmp_path)
    labels = [label.get_text().split()[0] for label in figures[0].axes[0].get_yticklabels()]
    arm = ["shoulder", "elbow", "hand"]
    sides = [f"{side}_{joint}" for side in ("right", "left") for joint in arm]
    legs = [f"{side}_{joint}" for side in ("right", "left") for joint in ("hip", "knee", "ankle")]
    assert labels == ["abdomen", "neck", *sides, *legs]
    assert figures[0].axes[0].get_title() == f"{tmp_path.name}/latest.pt on walk.npz: pose error of each joint [m]"


# ---- Films -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path, monkeypatch, walk):
    """film(text) films a clip of five frames as "a b.mp4", with a program of this text in the place of the tool."""

    def run(text):
        (tmp_path / "tool.py").write_text(text)
        monkeypatch.setattr(report, "RENDER", str(tmp_path / "tool.py"))
        report.film_episode(str(tmp_path / "a b.mp4"), clips_of(walk, 5)[0], walk)

    return run


@pytest.fixture
def typed():
    """Something waits on this process' standard input."""
    before = os.dup(0)
    read, write = os.pipe()
    os.write(write, b"typed")
    os.close(write)
    os.dup2(read, 0)
    yield
    os.dup2(before, 0)
    os.close(before)
    os.close(read)


def test_film_asks_the_tool(film, tmp_path, capfd, typed, walk):
    """By this Python, with the arguments in its order; it reads nothing of ours, and what it prints goes nowhere."""
    film(
        "import json, sys\nprint('chatter')\nprint('warning', file=sys.stderr)\n"
        "open(sys.argv[2], 'w').write(json.dumps([sys.executable, sys.stdin.read(), *sys.argv[1:]]))"
    )
    rollout, out = [str(tmp_path / f"a b.{ending}") for ending in ("npz", "mp4")]
    expected = [sys.executable, "", rollout, out, "--ghost", walk.files[0], "--fast", "--character-file"]
    expected.append(walk.character.path)
    assert json.loads(Path(out).read_text()) == expected
    assert len(ml.load_clip(rollout, walk.character.body_names).rotations) == 5
    assert capfd.readouterr() == ("", "")


TROUBLE = {  # what the tool does, complaint
    "says it": (
        "import sys; print('hm\\nerror: no OpenGL', file=sys.stderr); sys.exit(2)",
        ".mp4: .*error: no OpenGL$",
    ),
    "traceback": ("raise MemoryError('all of it')", "MemoryError: all of it$"),
    "killed": ("import os; os.abort()", "exit code -6$"),
    "no text": ("import sys; sys.stderr.buffer.write(b'error: \\xff\\n'); sys.exit(2)", "error: \ufffd$"),
    "silent": ("import sys; sys.exit(3)", "exit code 3$"),
}


@pytest.mark.parametrize("text, complaint", TROUBLE.values(), ids=TROUBLE.keys())
def test_a_film_that_fails_is_an_oserror(film, text, complaint):
    with pytest.raises(OSError, match=complaint) as error:
        film(text)
    assert "\n" not in str(error.value)


def test_a_film_that_is_watched_is_heard(tmp_path, monkeypatch, capfd, walk):
    """What the tool says, its bar for one, goes to the terminal, and its complaint is not said twice."""
    (tmp_path / "tool.py").write_text("import sys; print('chatter'); sys.exit('error: no OpenGL')")
    monkeypatch.setattr(report, "RENDER", str(tmp_path / "tool.py"))
    with pytest.raises(OSError, match=r"a\.mp4: not written: exit code 1$"):
        report.film("a.mp4", "a.npz", walk, None, True)
    assert capfd.readouterr() == ("", "error: no OpenGL\n")


def test_a_film_that_never_ends_is_given_up(film, tmp_path, monkeypatch):
    assert report.TOOL_SECONDS == 600.0
    monkeypatch.setattr(report, "TOOL_SECONDS", 2.0)
    with pytest.raises(OSError, match=r"a b\.mp4: not written in 2 s"):
        film(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_tool_is_there(root):
    assert Path(report.RENDER) == root / "motions/render.py" and Path(report.RENDER).is_file()
    assert Path(report.VIEW) == root / "motions/view.py" and Path(report.VIEW).is_file()
