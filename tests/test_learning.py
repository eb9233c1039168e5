"""Rewards, losses, advantages, updates, normaliser, networks, replay buffer, main loop, against known values."""

import copy
import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import command_line
import motion_lib as ml

CPU = torch.device("cpu")
LOG2 = 0.6931471805599453


def moving(yaw, velocity):
    """A state whose root faces `yaw` and moves with `velocity` in the world."""
    rotations = ml.quat_from_yaw(torch.tensor(yaw)).repeat(1, 15, 1)
    zero = torch.zeros(1, 3)
    return ml.MotionState(zero, rotations, torch.tensor([velocity]), zero, torch.zeros(1, 28))


# ---- Rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logit, reward",
    # D = 1/2, 3/4, 1/4, and the ends, where D rounds to 0 and 1
    [(0.0, LOG2), (math.log(3), 2 * LOG2), (-math.log(3), 0.2876820724517809), (100.0, 100.0), (-100.0, 0.0)],
)
def test_style_reward_of_cross_entropy(logit, reward):
    assert amp.style_reward(torch.tensor([logit]), "bce").tolist() == pytest.approx([reward], abs=1e-6)


def test_style_reward_of_least_squares():
    output = torch.tensor([[1.0, -1.0, 0.0, 2.0], [3.0, 5.0, -3.0, 0.5]])
    expected = torch.tensor([[1.0, 0.0, 0.75, 0.75], [0.0, 0.0, 0.0, 0.9375]])
    torch.testing.assert_close(amp.style_reward(output, "lsgan"), expected)


@pytest.mark.parametrize(
    "yaw, velocity, speed",
    [
        (0.0, (1.5, 0.0, 0.0), 1.5),
        (0.0, (-1.0, 3.0, 2.0), -1.0),
        (math.pi / 2, (0.0, 2.0, 5.0), 2.0),
        (math.pi, (1.0, 0.0, 0.0), -1.0),
        (math.pi / 4, (1.0, 1.0, 0.0), math.sqrt(2)),
        (math.pi / 6, (0.0, 1.0, 0.0), 0.5),
    ],
)
def test_forward_speed(yaw, velocity, speed):
    assert ml.forward_speed(moving(yaw, velocity)).tolist() == pytest.approx([speed], abs=1e-6)


@pytest.mark.parametrize(
    "speed, reward", [(1.5, 1.0), (2.5, math.exp(-2)), (0.5, math.exp(-2)), (1.0, math.exp(-0.5)), (-8.5, 0.0)]
)
def test_task_reward(speed, reward):
    forward = ml.forward_speed(moving(math.pi / 2, (0.3, speed, 0.0)))
    assert amp.task_reward(forward, 1.5, "speed").tolist() == pytest.approx([reward], abs=1e-6)
    assert amp.task_reward(forward, 1.5, "none").tolist() == [0.0]
    with pytest.raises(ValueError, match="location"):  # a name that nothing handles does not train as another
        amp.task_reward(forward, 1.5, "location")


# ---- Discriminator losses --------------------------------------------------------------------------------------------


LOG3 = math.log(3)


@pytest.mark.parametrize(
    "disc_loss, target, logit, loss",
    [
        # -log D of a clip's transition, -log(1 - D) of the character's; D = 1/2, 3/4, 1/4, and the ends
        ("bce", 1, (0.0, LOG3, -LOG3), (LOG2, 0.2876820724517809, 2 * LOG2)),
        ("bce", -1, (0.0, LOG3, -LOG3), (LOG2, 2 * LOG2, 0.2876820724517809)),
        ("bce", 1, (-50.0, 50.0), (50.0, 0.0)),
        ("bce", -1, (-50.0, 50.0), (0.0, 50.0)),
        # squared distances from 1 and from -1
        ("lsgan", 1, (1.0, 0.0, 3.0, -1.0), (0.0, 1.0, 4.0, 4.0)),
        ("lsgan", -1, (1.0, 0.0, 3.0, -1.0), (4.0, 1.0, 16.0, 0.0)),
    ],
)
def test_discriminator_loss(disc_loss, target, logit, loss):
    value = amp.disc_term(torch.tensor(logit), target, disc_loss)
    assert value.tolist() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("disc_loss", ["hinge", "", "BCE"])
def test_a_loss_that_nothing_handles_is_refused(disc_loss):
    with pytest.raises(ValueError, match=f"no discriminator loss {disc_loss}"):
        amp.disc_term(torch.zeros(3), 1, disc_loss)
    with pytest.raises(ValueError, match=f"no style reward for {disc_loss}"):
        amp.style_reward(torch.zeros(3), disc_loss)


@pytest.mark.parametrize("disc_loss", ["bce", "lsgan"])
def test_what_fools_the_discriminator_is_rewarded(disc_loss):
    """The reward rises with the logit, from the best that the discriminator can do to the worst."""
    logit = torch.linspace(-1, 1, 50)
    assert (amp.style_reward(logit, disc_loss).diff() > 0).all()
    assert (amp.disc_term(logit, -1, disc_loss).diff() > 0).all() and (
        amp.disc_term(logit, 1, disc_loss).diff() < 0
    ).all()


def test_gradient_penalty_of_a_linear_discriminator():
    disc = torch.nn.Linear(3, 1)
    disc.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    demo = torch.randn(5, 3, requires_grad=True)
    penalty = amp.gradient_penalty(disc(demo)[:, 0], demo)
    assert penalty.shape == () and penalty.item() == pytest.approx(14.0)  # 1 + 4 + 9, the squared length
    (gradient,) = torch.autograd.grad(penalty, disc.weight)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -4.0, 6.0]]))


def test_gradient_penalty_is_a_mean_over_transitions():
    """The logit x^2 has the slope 2 x: at 1 and 3 its square is 4 and 36."""
    demo = torch.tensor([[1.0, 7.0], [3.0, 7.0]], requires_grad=True)
    assert amp.gradient_penalty(demo[:, 0] ** 2, demo).item() == pytest.approx(20.0)


def test_gradient_penalty_against_finite_differences():
    torch.manual_seed(0)
    disc = amp.mlp(6, (16, 8), 1, 1.0).double()
    demo = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    h = 1e-6

    def penalty():
        return amp.gradient_penalty(disc(demo)[:, 0], demo)

    steps = h * torch.eye(6, dtype=torch.float64)
    slopes = (disc(demo[:, None] + steps) - disc(demo[:, None] - steps))[..., 0] / (2 * h)  # (7, 6)
    assert penalty().item() == pytest.approx((slopes**2).sum(-1).mean().item(), rel=1e-6)
    # the penalty, too, can be derived: by some weights of every layer
    gradients = torch.autograd.grad(penalty(), [layer.weight for layer in disc[::2]])
    for layer, gradient in zip(disc[::2], gradients):
        for index in ((0, 0), (0, layer.in_features - 1)):
            values = []
            for step in (h, -h):
                layer.weight.data[index] += step
                values.append(penalty().item())
                layer.weight.data[index] -= step
            assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)


# ---- Advantages ------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma = lambda = 1/2. One environment runs on, one times out in its second step, one falls in its third."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].repeat(1, 3)
    value = torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None].repeat(1, 3)
    next_value = torch.tensor([20.0, 30.0, 40.0, 50.0])[:, None].repeat(1, 3)
    next_value[1, 1] = 100.0  # of the state before the reset; the value after it is 30
    terminated = torch.zeros(4, 3, dtype=torch.bool)
    truncated = torch.zeros(4, 3, dtype=torch.bool)
    truncated[1, 1] = terminated[2, 2] = True
    advantage = amp.gae(reward, value, next_value, terminated, terminated | truncated, 0.5, 0.5)
    # deltas of the first:  1 + 10 - 10 = 1,  2 + 15 - 20 = -3,  3 + 20 - 30 = -7,  4 + 25 - 40 = -11
    runs_on = [1 - 5.4375 / 4, -3 - 9.75 / 4, -7 - 11 / 4, -11]
    # of the second: 1, 2 + 50 - 20 = 32, -7, -11, where nothing passes from the third step to the second
    times_out = [1 + 32 / 4, 32, -7 - 11 / 4, -11]
    # of the third: 1, -3, 3 - 30 = -27, -11, where nothing passes from the fourth step to the third
    falls = [1 + (-3 - 27 / 4) / 4, -3 - 27 / 4, -27, -11]
    assert advantage.T.tolist() == [runs_on, times_out, falls]


@given(st.integers(1, 12), st.floats(0.1, 0.99), st.integers(0, 2**31))
def test_gae_with_lambda_one_is_the_return_minus_the_value(steps, gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.rand(2, steps + 1, 2, generator=generator, dtype=torch.float64)
    reward = reward[:steps]
    terminated = torch.zeros(steps, 2, dtype=torch.bool)
    terminated[-1, 1] = True  # the second environment ends for good, the first one is cut off
    advantage = amp.gae(reward, value[:-1], value[1:], terminated, terminated, gamma, 1.0)
    discount = gamma ** torch.arange(steps + 1, dtype=torch.float64)
    total = (discount[:-1, None] * reward).sum(0) + discount[-1] * value[-1] * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(advantage[0], total - value[0])


# ---- Updates ---------------------------------------------------------------------------------------------------------


def two_nets():
    """Two networks of two weights, both (1, 1), each with an optimiser's group of its own."""
    nets = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)]
    for net in nets:
        torch.nn.init.ones_(net.weight)
    groups = [{"params": net.parameters(), "lr": lr} for net, lr in zip(nets, (0.1, 0.01))]
    return (*nets, torch.optim.Adam(groups, fused=True))


def outputs(one, two, x, y):
    """A loss whose gradient is x for the first network and y for the second."""
    return one(torch.tensor(x)).sum() + two(torch.tensor(y)).sum()


def test_an_update():
    """Adam's first step is the learning rate against the sign of the gradient, however long that is."""
    one, two, optimizer = two_nets()
    skipped = amp.update(optimizer, outputs(one, two, (3.0, -4.0), (0.3, 0.4)), (one, two), 1.0)
    assert skipped.shape == () and skipped.item() == 0.0
    torch.testing.assert_close(one.weight.data, torch.tensor([[0.9, 1.1]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(two.weight.data, torch.tensor([[0.99, 0.99]]), atol=1e-5, rtol=0)


def test_each_network_is_clipped_by_itself():
    """Gradients of length 5 and 0.5: the first is scaled down to length 1, the second stays; and none adds up."""
    one, two, optimizer = two_nets()
    for _ in range(2):
        amp.update(optimizer, outputs(one, two, (3.0, -4.0), (0.3, 0.4)), (one, two), 1.0)
        torch.testing.assert_close(one.weight.grad, torch.tensor([[0.6, -0.8]]))
        torch.testing.assert_close(two.weight.grad, torch.tensor([[0.3, 0.4]]))
    amp.update(optimizer, outputs(one, two, (3.0, -4.0), (0.3, 0.4)), (one, two), 10.0)
    torch.testing.assert_close(one.weight.grad, torch.tensor([[3.0, -4.0]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_an_update_that_is_not_finite_is_left_out(bad, place):
    """No trace of it is left, neither in the networks nor in the optimiser: the next one is as if it had not been."""
    gradient = [[(1.0, 2.0), (0.5, 0.5)], [(1.0, bad), (0.5, 0.5)], [(2.0, -1.0), (0.1, 0.3)]]
    gradient[1] = gradient[1] if place == 0 else gradient[1][::-1]
    weights = []
    for chosen in ((0, 1, 2), (0, 2)):
        one, two, optimizer = two_nets()
        skipped = []
        for i in chosen:
            before = copy.deepcopy((one.weight.data, two.weight.data))
            skipped.append(amp.update(optimizer, outputs(one, two, *gradient[i]), (one, two), 1.0).item())
            moved = [not torch.equal(x, net.weight.data) for x, net in zip(before, (one, two))]
            assert moved == [i != 1] * 2
        assert skipped == [float(i == 1) for i in chosen]
        weights.append((one.weight.data, two.weight.data))
    assert torch.equal(weights[0][0], weights[1][0]) and torch.equal(weights[0][1], weights[1][1])


# ---- Normaliser ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(-10, 10), st.floats(0.1, 5)), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_moments_are_those_of_all_rows(batches, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(mean, std, (n, 3)) for n, mean, std in batches]
    normaliser = amp.Normaliser(3)
    for batch in rows:
        normaliser.update(torch.tensor(batch, dtype=torch.float32))
    together = np.concatenate(rows)
    np.testing.assert_allclose(normaliser.mean.numpy(), together.mean(0), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(normaliser.var.numpy(), together.var(0), atol=1e-3, rtol=1e-3)


def test_normalised_rows():
    normaliser = amp.Normaliser(2)
    x = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    torch.testing.assert_close(normaliser(x / 10), x / 10, atol=1e-4, rtol=1e-4)  # nothing is known yet
    normaliser.update(x)  # means 1 and 20, standard deviations 1 and 10
    torch.testing.assert_close(normaliser(x), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(normaliser(torch.tensor([[100.0, -1000.0]])), torch.tensor([[5.0, -5.0]]))
    torch.testing.assert_close(normaliser.std(), torch.tensor([1.0, 10.0]), atol=1e-4, rtol=1e-4)


def test_a_constant_input_does_not_divide_by_zero():
    normaliser = amp.Normaliser(1)
    normaliser.update(torch.full((100, 1), 3.0))
    assert normaliser(torch.tensor([[3.0], [3.001]])).abs().max() < 1


def test_moments_are_saved():
    normaliser, other = amp.Normaliser(2), amp.Normaliser(2)
    normaliser.update(torch.randn(50, 2) * 3 + 1)
    other.load_state_dict(normaliser.state_dict())
    more = torch.randn(10, 2)
    normaliser.update(more)
    other.update(more)  # and the count with them
    x = torch.randn(5, 2)
    assert torch.equal(normaliser(x), other(x))
    assert not list(normaliser.parameters())


# ---- Networks --------------------------------------------------------------------------------------------------------


def test_mlp_layers():
    net = amp.mlp(7, (5, 3), 2, 0.01)
    layers = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(5, 7), (3, 5), (2, 3)]
    assert net(torch.randn(4, 6, 7)).shape == (4, 6, 2)
    # orthogonal rows: of length sqrt(2) in the hidden layers and as long as asked for in the last one
    for layer, gain in zip(layers, (2**0.5, 2**0.5, 0.01)):
        products = layer.weight @ layer.weight.T
        torch.testing.assert_close(products, gain**2 * torch.eye(len(layer.weight)), atol=1e-5, rtol=1e-4)
        assert layer.bias.abs().max() == 0
    x = torch.randn(10, 7)
    assert (net(2 * x) - 2 * net(x)).abs().max() < 1e-6  # ReLU without biases scales ...
    assert (net(-x) + net(x)).abs().max() > 1e-6  # ... but is not odd, as a linear map would be


def make_agent(obs_size, action_size, hidden, action_std_log=-2.5):
    """An agent of an environment with these sizes, whose discriminator sees two observations."""
    env = SimpleNamespace(obs_size=obs_size, action_offset=torch.zeros(action_size), disc_obs_size=2 * obs_size)
    return amp.Agent(env, hidden, action_std_log)


@given(st.floats(-4, 1), st.integers(0, 2**31))
def test_log_prob_against_torch(std_log, seed):
    torch.manual_seed(seed)
    agent = make_agent(3, 5, (4, 4), std_log)
    mean, action = torch.randn(2, 6, 5, dtype=torch.float64)
    distribution = torch.distributions.Normal(mean, torch.full_like(mean, math.exp(std_log)))
    difference = agent.log_prob(mean, action) - distribution.log_prob(action).sum(-1)  # (6,), a constant
    assert difference.shape == (6,)
    torch.testing.assert_close(difference, difference[:1].expand(6), atol=1e-6, rtol=1e-9)


def test_agent_shapes_and_value_scale():
    torch.manual_seed(0)
    agent = make_agent(105, 28, (16, 8))
    obs = torch.randn(4, 6, 105)
    assert agent.actor(obs).shape == (4, 6, 28) and agent.disc(torch.randn(9, 210)).shape == (9, 1)
    assert agent.actor(obs).abs().max() < 0.2  # starts near the clip's mean pose
    value = agent.value(obs)
    assert value.shape == (4, 6)
    agent.return_norm.update(torch.tensor([[90.0], [110.0]]))  # returns of 100 +- 10
    torch.testing.assert_close(agent.value(obs), 100 + 10 * value, atol=1e-2, rtol=1e-4)
    agent.obs_norm.update(torch.randn(100, 105) + 3)
    assert not torch.allclose(agent.value(obs), 100 + 10 * value, atol=1e-2)  # observations are normalised on the way
    transitions = torch.randn(9, 210)
    logit = agent.logit(transitions)
    torch.testing.assert_close(logit, agent.disc(transitions)[:, 0], atol=1e-4, rtol=1e-4)  # nothing is known yet
    agent.disc_norm.update(torch.tensor([[-1.0], [3.0]]).expand(2, 210))  # of 1 +- 2
    torch.testing.assert_close(agent.logit(1 + 2 * transitions), logit, atol=1e-4, rtol=1e-4)
    # the moments are part of what is saved
    assert {"obs_norm.mean", "disc_norm.var", "return_norm.count"} <= set(agent.state_dict())


# ---- Replay buffer ---------------------------------------------------------------------------------------------------


def numbered(first, n):
    """n rows (n, 2), all different, that carry their number twice."""
    return torch.arange(first, first + n).float()[:, None].repeat(1, 2)


def content(buffer):
    """The numbers of the rows in the buffer, sorted; no row is mixed from two."""
    rows = buffer.sample(50 * max(len(buffer.data), 1))
    assert torch.equal(rows[:, 0], rows[:, 1])
    return sorted(set(rows[:, 0].tolist()))


def test_the_buffer_fills_up():
    torch.manual_seed(0)
    buffer = amp.ReplayBuffer(10, 2, CPU)
    buffer.add(numbered(1, 4), keep=2)
    assert content(buffer) == [1, 2, 3, 4]  # all of them, and no empty rows
    buffer.add(numbered(5, 3), keep=2)
    assert content(buffer) == [1, 2, 3, 4, 5, 6, 7]
    buffer.add(numbered(8, 100), keep=2)  # more than there is room for
    assert len(content(buffer)) == 10 and content(buffer)[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert buffer.sample(33).shape == (33, 2)


def test_a_full_buffer_keeps_a_random_part():
    torch.manual_seed(0)
    replaced, kept, taken = set(), set(), set()
    for _ in range(100):
        buffer = amp.ReplayBuffer(10, 2, CPU)
        for n in range(10):  # in this order
            buffer.add(numbered(n, 1), keep=3)
        buffer.add(numbered(100, 20), keep=3)
        rows = content(buffer)
        old = [x for x in rows if x < 100]
        new = [x for x in rows if x >= 100]
        assert (len(old), len(new)) == (7, 3)  # exactly `keep` newcomers, each once, over as many old rows
        kept |= set(old)
        replaced |= set(range(10)) - set(old)
        taken |= set(new)
    assert kept == replaced == set(range(10)) and taken == set(range(100, 120))  # any row may go and any may come


def test_rows_that_do_not_fit_are_chosen_at_random():
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        buffer = amp.ReplayBuffer(5, 2, CPU)
        buffer.add(numbered(0, 20), keep=1)
        assert len(content(buffer)) == 5
        seen |= set(content(buffer))
    assert seen == set(range(20))


def test_the_buffer_holds_copies():
    buffer = amp.ReplayBuffer(4, 2, CPU)
    rows = numbered(1, 4)
    buffer.add(rows, keep=1)
    rows.zero_()
    assert content(buffer) == [1, 2, 3, 4]


def test_sampling_is_uniform():
    torch.manual_seed(0)
    buffer = amp.ReplayBuffer(8, 2, CPU)
    buffer.add(numbered(0, 8), keep=1)
    count = torch.bincount(buffer.sample(8000)[:, 0].long(), minlength=8)
    assert (count - 1000).abs().max() < 150  # 5 standard deviations


@pytest.mark.parametrize("rows", [0, 4, 30])
def test_the_state_of_a_buffer(rows):
    """Another buffer with this state goes on like the first one, with the same random numbers."""
    torch.manual_seed(0)
    first, second = [amp.ReplayBuffer(10, 2, CPU) for _ in range(2)]
    if rows:
        first.add(numbered(0, rows), keep=3)
    state = first.state_dict()
    assert state["data"].untyped_storage().nbytes() == min(rows, 10) * 2 * 4  # what is stored, and no room
    second.load_state_dict(state)
    buffers = []
    for buffer in (first, second):
        torch.manual_seed(1)
        for n in (5, 7, 9):
            buffer.add(numbered(100 + n, n), keep=3)
        buffers.append((buffer.data, buffer.sample(20)))
    assert all(torch.equal(x, y) for x, y in zip(*buffers)) and len(first.data) == 10
    assert len(state["data"]) == min(rows, 10) and (state["data"] < 100).all()  # a copy
    with pytest.raises(ValueError, match=r"\(\d+, 2\) there and .* \(0, 3\) here"):
        amp.ReplayBuffer(10, 3, CPU).load_state_dict(state)
    smaller = amp.ReplayBuffer(3, 2, CPU)  # as of a run that goes on with another --replay-size
    smaller.load_state_dict(state)
    smaller.add(numbered(200, 9), keep=2)
    assert len(smaller.data) == max(len(state["data"]), 3)


# ---- Main loop -------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(monkeypatch, tmp_path, root, signals):
    """train(script=..., option=value, ...): iterate over a tiny training, 4 times 4 steps of 8 environments."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    number = itertools.count()  # runs of one second would have one name

    def run(script=amp, **changes):
        monkeypatch.setattr(sys, "argv", [script.__file__])
        options = dict(motion_file=root / "motions/walk.npz", character_file=root / "motions/humanoid.xml")
        options.update(num_envs=8, num_steps=4, total_timesteps=128, num_minibatches=2, hidden="16 8", sim="mujoco")
        options.update(
            clone_updates=3,
            disc_updates=3,
            disc_batch=16,
            replay_size=80,
            replay_keep=8,
            eval_episodes=2,
            eval_seconds=0.2,
        )
        options.update({"eval_interval": 0, "exp_name": f"run{next(number)}", **changes})
        flags = ["--no-cuda"]
        for name, value in options.items():
            flags += [f"--{name.replace('_', '-')}", *str(value).split()]
        args, checkpoint = command_line.parse_args(script.Args, script.KIND, flags)
        script.check_args(args)
        return script.main(args, checkpoint)

    return run


def weights(agent):
    return copy.deepcopy(agent.state_dict())


both_scripts = pytest.mark.parametrize("script", [amp, heading], ids=["base", "heading"])


@both_scripts
def test_iterations_of_the_main_loop(train, script):
    seen = []
    for agent, env, log in train(script, style_weight=3.0):
        assert isinstance(agent, script.Agent) and isinstance(env, script.AMPEnv) and env.num_envs == 2
        seen.append((weights(agent), log))
    assert len(seen) == 4
    for k, (state, log) in enumerate(seen, 1):
        # the normalisers start from the clip, and from where the character starts
        assert state["obs_norm.count"] == 8 + 3 * 8 + 32 * k and state["return_norm.count"] == 32 * k
        assert state["disc_norm.count"] == 4096 + (16 + 16) * k  # as many transitions of the clip as of the character
        assert all(x.isfinite().all() for x in state.values())
        assert {name for name, x in log.items() if not math.isfinite(x)} <= {"episode/length"}  # if none has ended
        assert log["reward/total"] == pytest.approx(log["reward/task"] + 3.0 * log["reward/style"], abs=1e-5)
        assert 0 < log["reward/task"] <= 1
        assert max(x for name, x in log.items() if name.endswith("/skipped")) == 0
        assert ("eval/pose_error_m" in log) == (k == 4)
    for (before, _), (after, _) in zip(seen, seen[1:]):
        for name, _ in agent.named_parameters():
            assert not torch.equal(before[name], after[name]), name


@both_scripts
def test_the_policy_starts_from_the_clip(train, script, character):
    """With PD targets q + kd / kp dq: of a drive that follows q(t), kp (target - q) = kd dq."""

    def miss(updates):
        """Mean distance of the policy's targets from these, where episodes start, after one iteration [rad]."""
        options = dict(num_envs=64, num_minibatches=4, total_timesteps=256, hidden="256 128")
        ((agent, env, _),) = train(script, clone_updates=updates, **options)
        obs, info = env.reset(7)
        state = info["state"]
        lead = torch.tensor([float(kd) / float(kp) for kd, kp in zip(character.kd, character.kp)])
        expected = ml.dof_positions(character, state.rotations) + lead * state.dof_velocity
        with torch.no_grad():
            target = env.action_offset + env.args.action_scale * agent.actor(agent.obs_norm(obs))
        return float((target - expected).abs().mean())

    assert miss(200) < 0.05 < 0.1 < miss(0)


@both_scripts
def test_the_discriminator_learns_under_noise_and_judges_without(train, script):
    for noise in (0.0, 20.0):
        training = train(script, disc_noise=noise)
        agent, *_ = next(training)
        seen = []
        agent.disc.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        next(training)
        largest = [float(x.abs().max()) for x in seen]
        # three updates with 16 transitions of the clip and of the character, then 32 are judged; the normaliser clips
        assert [len(x) for x in seen] == [16] * 6 + [32]
        assert all((x > 5) == (noise > 0) for x in largest[:-1]) and largest[-1] <= 5


@both_scripts
def test_a_training_takes_no_notice_of_evaluations(train, script):
    """With and without them, and so the same seed gives the same numbers, bit for bit."""
    without = [weights(agent) for agent, *_ in train(script)]
    for expected, (agent, _, log) in zip(without, train(script, eval_interval=1)):
        assert "eval/pose_error_m" in log
        assert all(torch.equal(x, expected[name]) for name, x in agent.state_dict().items())
    (other,) = [weights(agent) for agent, *_ in train(script, total_timesteps=32, seed=2)]
    assert not torch.equal(other["actor.0.weight"], without[0]["actor.0.weight"])


@both_scripts
@pytest.mark.parametrize("disc_loss, disc_steps", [("bce", 5), ("lsgan", 10)])
def test_more_states_for_the_discriminator(train, script, disc_loss, disc_steps):
    for agent, env, log in train(script, disc_loss=disc_loss, disc_steps=disc_steps):
        assert agent.disc[0].in_features == env.disc_obs_size == disc_steps * 105
        assert all(x.isfinite().all() for x in agent.state_dict().values())
        assert 0 < log["reward/style"] < (1 if disc_loss == "lsgan" else math.inf)


def test_the_task_none_has_no_reward(train):
    for _, env, log in train(task="none"):
        assert env.args.target_speed is None
        assert log["reward/task"] == 0 and log["reward/total"] == pytest.approx(2 * log["reward/style"])


def test_the_target_speed_is_the_clips_own(train, walk):
    for _, env, log in train(total_timesteps=32):
        assert env.wanted_speed == pytest.approx(walk.statistics()[-1]) and env.args.target_speed is None
        assert log["reward/task"] > 0.5  # the character starts with it


def rates(training):
    return [log["policy/learning_rate"] for _, _, log in training]


def test_the_learning_rate_follows_the_kl_divergence(train):
    """Up by 1.2 where the policy changes too little, down where too much, between 1e-6 and 1e-2."""
    assert rates(train(target_kl=1e6)) == pytest.approx([3e-4 * 1.2**k for k in (1, 2, 3, 4)])
    assert rates(train(target_kl=1e-9)) == pytest.approx([3e-4 / 1.2**k for k in (1, 2, 3, 4)])
    assert rates(train(target_kl=1e6, learning_rate=9e-3)) == pytest.approx([1e-2] * 4)
    assert rates(train(target_kl=1e-9, learning_rate=1.1e-6)) == pytest.approx([1e-6] * 4)


@pytest.mark.parametrize("script", [amp, heading])
def test_the_action_noise_falls_towards_the_end(train, script):
    """By twice the share of the training that lies in --anneal; of four iterations the third ends at three quarters."""
    for anneal, fallen in ((0.0, (0, 0, 0, 0)), (0.5, (0, 0, 0.5, 1)), (1.0, (0.5, 1, 1.5, 2))):
        seen = [float(agent.action_std) for agent, *_ in train(script, anneal=anneal, action_std_log=-2)]
        assert seen == pytest.approx([math.exp(-2 - x) for x in fallen])


@pytest.mark.parametrize("script", [amp, heading])
def test_the_evaluated_policy_is_an_average(train, script):
    """With a share of 1 the mean of the policies of all iterations; with 0 the latest; evaluations use it."""
    for share in (0.0, 1.0):
        seen = []
        for agent, env, _ in train(script, average_share=share):
            seen.append(torch.cat([x.detach().flatten() for x in agent.actor.parameters()]).clone())
            last = env
        average = torch.cat([x.detach().flatten() for x in agent.average_actor.parameters()])
        assert len(seen) == 4
        torch.testing.assert_close(average, sum(seen) / 4 if share else seen[-1])
    evaluated = script.evaluate(agent, last, last.args)[0]
    agent.actor = None  # is not asked
    assert script.evaluate(agent, last, last.args)[0] == pytest.approx(evaluated, nan_ok=True)


@pytest.mark.parametrize("script", [amp, heading])
def test_the_target_of_the_kl_divergence_falls(train, script):
    """It is whole until a quarter of the training, and 2/3 at half; up to 4/3 of it the rate stays as it is."""
    for share, falls in ((4, (1.2, 1.6)), (2, (0.8, 1.2))):  # iterations; kl / target is then 1.2, and 1.6 or 1.8
        kl = next(train(script, total_timesteps=32 * share))[2]["policy/kl"]
        for over, factor in zip(falls, (1, 1 / 1.2)):
            log = next(train(script, total_timesteps=32 * share, target_kl=kl / over))[2]
            assert log["policy/learning_rate"] == pytest.approx(3e-4 * factor)


@pytest.mark.parametrize("option, layers", [("logit_reg", (4,)), ("disc_weight_decay", (0, 2, 4))])
def test_regularisers_shrink_weights(train, option, layers):
    """If all else is negligible, every weight comes nearer to zero by the learning rate with each of the updates."""
    states = [weights(agent) for agent, *_ in train(disc_learning_rate=1e-3, **{option: 1e9})]
    for layer in layers:
        before, after = [states[i][f"disc.{layer}.weight"].abs() for i in (0, 3)]
        far = before > 0.05
        assert far.sum() > 4  # 3 iterations of 3 updates each
        torch.testing.assert_close(before[far] - after[far], torch.full_like(before[far], 9e-3), atol=1e-3, rtol=0)


def test_the_gradient_penalty_flattens_the_discriminator(train):
    options = dict(disc_learning_rate=1e-2, disc_batch=64)
    slopes = [[log["disc/grad_penalty"] for *_, log in train(grad_penalty=x, **options)] for x in (0.0, 1e9)]
    assert slopes[1][-1] < 0.5 * slopes[1][0] and slopes[1][-1] < 0.2 * slopes[0][-1]
