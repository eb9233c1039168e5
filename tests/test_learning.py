"""Rewards, losses, advantages, normaliser, networks and replay buffer against known values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_isaacgym as amp
import motion_lib as ml

CPU = torch.device("cpu")
LOG2 = 0.6931471805599453


def moving(yaw, velocity):
    """A state whose root faces `yaw` and moves with `velocity` in the world."""
    rotations = ml.quat_from_yaw(torch.tensor(yaw)).repeat(1, 15, 1)
    zero = torch.zeros(1, 3)
    return ml.MotionState(zero, rotations, torch.tensor([velocity]), zero, torch.zeros(1, 28))


# ----------------------------------------------------------------------------------------------------------------------------------
# Rewards
# ----------------------------------------------------------------------------------------------------------------------------------


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
    assert amp.forward_speed(moving(yaw, velocity)).tolist() == pytest.approx([speed], abs=1e-6)


@pytest.mark.parametrize(
    "speed, reward", [(1.5, 1.0), (2.5, math.exp(-2)), (0.5, math.exp(-2)), (1.0, math.exp(-0.5)), (-8.5, 0.0)]
)
def test_task_reward(speed, reward):
    assert amp.task_reward(amp.forward_speed(moving(math.pi / 2, (0.3, speed, 0.0))), 1.5).tolist() == pytest.approx(
        [reward], abs=1e-6
    )
    assert amp.task_reward(amp.forward_speed(moving(math.pi / 2, (0.3, speed, 0.0))), None).tolist() == [0.0]


# ----------------------------------------------------------------------------------------------------------------------------------
# Discriminator losses
# ----------------------------------------------------------------------------------------------------------------------------------


def identity_disc():
    """Its logit is the first of two inputs."""
    disc = torch.nn.Linear(2, 1)
    disc.weight.data = torch.tensor([[1.0, 0.0]])
    disc.bias.data.zero_()
    return disc


def with_logits(*logits):
    return torch.tensor([[x, 7.0] for x in logits])


@pytest.mark.parametrize(
    "kind, demo, agent, loss",
    [
        ("bce", (0.0, 0.0), (0.0, 0.0), 2 * LOG2),
        ("bce", (math.log(3),), (-math.log(3),), 0.5753641449035618),  # -log(3/4) twice
        ("bce", (0.0, math.log(3)), (0.0, -math.log(3)), LOG2 + 0.2876820724517809),  # a mean over each side
        ("bce", (-50.0,), (50.0,), 100.0),
        ("bce", (50.0,), (-50.0, -60.0, -70.0), 0.0),
        ("lsgan", (1.0, 1.0), (-1.0, -1.0), 0.0),
        ("lsgan", (0.0,), (0.0,), 2.0),
        ("lsgan", (3.0, 1.0), (-1.0, -1.0, 2.0), 2.0 + 3.0),
    ],
)
def test_discriminator_loss(kind, demo, agent, loss):
    value, penalty, demo_logit, agent_logit = amp.disc_losses(
        identity_disc(), with_logits(*demo), with_logits(*agent), kind
    )
    assert value.item() == pytest.approx(loss, abs=1e-5)
    assert penalty.item() == pytest.approx(1.0)  # the gradient of the logit is (1, 0), whatever the loss
    assert demo_logit.tolist() == pytest.approx(demo) and agent_logit.tolist() == pytest.approx(agent)


def test_gradient_penalty_of_a_linear_discriminator():
    disc = torch.nn.Linear(3, 1)
    disc.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    _, penalty, _, _ = amp.disc_losses(disc, torch.randn(5, 3), torch.randn(4, 3), "bce")
    assert penalty.item() == pytest.approx(14.0)  # 1 + 4 + 9, the squared length and not the length
    (gradient,) = torch.autograd.grad(penalty, disc.weight)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -4.0, 6.0]]))


@pytest.mark.parametrize("kind", ["bce", "lsgan"])
def test_gradient_penalty_against_finite_differences(kind):
    torch.manual_seed(0)
    disc = amp.mlp(6, (16, 8), 1, 1.0).double()
    demo, agent = torch.randn(7, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    h = 1e-6

    def slopes():
        ahead, back = (
            disc(demo[:, None] + step * torch.eye(6, dtype=torch.float64))[..., 0] for step in (h, -h)
        )  # (7, 6)
        return (ahead - back) / (2 * h)

    loss, penalty, demo_logit, _ = amp.disc_losses(disc, demo, agent, kind)
    assert penalty.item() == pytest.approx((slopes() ** 2).sum(-1).mean().item(), rel=1e-6)
    assert amp.disc_losses(disc, demo, agent + 1, kind)[1].item() == penalty.item()  # on the clip's transitions only
    torch.testing.assert_close(demo_logit, disc(demo)[:, 0])
    # the penalty, too, is differentiable: its gradient with respect to some weights of every layer, and the loss's
    for number, value in enumerate((loss, penalty)):
        gradients = torch.autograd.grad(value, [layer.weight for layer in disc[::2]], retain_graph=True)
        for layer, gradient in zip(disc[::2], gradients):
            for index in ((0, 0), (0, layer.in_features - 1)):
                values = []
                for step in (h, -h):
                    layer.weight.data[index] += step
                    values.append(amp.disc_losses(disc, demo, agent, kind)[number].item())
                    layer.weight.data[index] -= step
                assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)


# ----------------------------------------------------------------------------------------------------------------------------------
# Advantages
# ----------------------------------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma = lambda = 1/2, three environments: one runs on, one times out in the second step, one is terminated in the third."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].repeat(1, 3)
    value = torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None].repeat(1, 3)
    next_value = torch.tensor([20.0, 30.0, 40.0, 50.0])[:, None].repeat(1, 3)
    next_value[1, 1] = 100.0  # of the state before the reset; the value after it is 30
    terminated, truncated = torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
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


# ----------------------------------------------------------------------------------------------------------------------------------
# Normaliser
# ----------------------------------------------------------------------------------------------------------------------------------


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
    back = normaliser.undo(normaliser(torch.tensor([[-1.5, 60.0], [4.0, 7.0]])))
    torch.testing.assert_close(back, torch.tensor([[-1.5, 60.0], [4.0, 7.0]]), atol=1e-4, rtol=1e-4)


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


# ----------------------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------------------


def test_mlp_layers():
    net = amp.mlp(7, (5, 3), 2, 0.01)
    assert [tuple(layer.weight.shape) for layer in net if isinstance(layer, torch.nn.Linear)] == [
        (5, 7),
        (3, 5),
        (2, 3),
    ]
    assert net(torch.randn(4, 6, 7)).shape == (4, 6, 2)
    # orthogonal rows: of length sqrt(2) in the hidden layers and as long as asked for in the last one
    for layer, gain in ((net[0], 2**0.5), (net[2], 2**0.5), (net[4], 0.01)):
        torch.testing.assert_close(
            layer.weight @ layer.weight.T, gain**2 * torch.eye(len(layer.weight)), atol=1e-5, rtol=1e-4
        )
        assert layer.bias.abs().max() == 0
    x = torch.randn(10, 7)
    assert (net(2 * x) - 2 * net(x)).abs().max() < 1e-6  # ReLU without biases scales ...
    assert (net(-x) + net(x)).abs().max() > 1e-6  # ... but is not odd, as a linear map would be


@given(st.floats(-4, 1), st.integers(0, 2**31))
def test_log_prob_against_torch(std_log, seed):
    torch.manual_seed(seed)
    agent = amp.Agent(3, 6, 5, (4, 4), std_log)
    mean, action = torch.randn(2, 6, 5, dtype=torch.float64)
    distribution = torch.distributions.Normal(mean, torch.full_like(mean, math.exp(std_log)))
    difference = agent.log_prob(mean, action) - distribution.log_prob(action).sum(-1)  # (6,), a constant
    assert difference.shape == (6,)
    torch.testing.assert_close(difference, difference[:1].expand(6), atol=1e-6, rtol=1e-9)


def test_agent_shapes_and_value_scale():
    torch.manual_seed(0)
    agent = amp.Agent(105, 210, 28, (16, 8), -2.5)
    obs = torch.randn(4, 6, 105)
    assert agent.actor(obs).shape == (4, 6, 28) and agent.disc(torch.randn(9, 210)).shape == (9, 1)
    assert agent.actor(obs).abs().max() < 0.2  # starts near the clip's mean pose
    value = agent.value(obs)
    assert value.shape == (4, 6)
    agent.return_norm.update(torch.tensor([[90.0], [110.0]]))  # returns of 100 +- 10
    torch.testing.assert_close(agent.value(obs), 100 + 10 * value, atol=1e-2, rtol=1e-4)
    agent.obs_norm.update(torch.randn(100, 105) + 3)
    assert not torch.equal(agent.value(obs), 100 + 10 * value)  # observations are normalised on the way
    # the moments are part of what is saved
    assert {"obs_norm.mean", "disc_norm.var", "return_norm.count"} <= set(agent.state_dict())


# ----------------------------------------------------------------------------------------------------------------------------------
# Replay buffer
# ----------------------------------------------------------------------------------------------------------------------------------


def numbered(first, n):
    """n rows (n, 2), all different, that carry their number twice."""
    return torch.arange(first, first + n).float()[:, None].repeat(1, 2)


def content(buffer):
    """The numbers of the rows in the buffer, sorted; no row is mixed from two."""
    rows = buffer.sample(50 * max(buffer.size, 1))
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
        old, new = [x for x in rows if x < 100], [x for x in rows if x >= 100]
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
