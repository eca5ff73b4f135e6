"""Learning-rate schedules: PyTorch's numbers at every step, by hand and against PyTorch itself."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.training import Cosine, LinearDecay, OneCycle, Schedule, StepDecay

PEAK = 0.3


def rates(schedule, steps, total_steps, peak=1.0):
    steps = jnp.asarray(steps, jnp.int32)
    found = schedule.build(peak, total_steps=total_steps)(steps)
    return np.broadcast_to(np.asarray(found), steps.shape).tolist()


@pytest.mark.quick
def test_cosine_by_hand():
    np.testing.assert_allclose(rates(Cosine(), [0, 5, 10, 11], 10), [1, 0.5, 0, 0], atol=1e-7)
    halfway = rates(Cosine(decay_steps=4, final_factor=0.2), [0, 2, 4, 9], 10)
    np.testing.assert_allclose(halfway, [1, 0.6, 0.2, 0.2], atol=1e-7)


@pytest.mark.parametrize("schedule", [Schedule, Cosine, LinearDecay, OneCycle, StepDecay])
def test_a_warmup_is_shorter_than_the_run(schedule):
    schedule(warmup_steps=4).check(5)
    with pytest.raises(ValueError, match="must be less than the 4 steps of the run, got 4"):
        schedule(warmup_steps=4).check(4)


def test_a_subclass_with_the_earlier_method_is_refused():
    with pytest.raises(ValueError, match=r"^Mine\.factor is no longer called; define after_warmup"):

        class Mine(Schedule):
            def factor(self, step, total_steps):
                return 0.5


def test_warmup_rises_to_the_peak_and_then_falls():
    warmed = rates(Cosine(warmup_steps=4), range(8), 8)
    np.testing.assert_allclose(warmed[:5], [0.25, 0.5, 0.75, 1.0, 1.0], atol=1e-7)
    np.testing.assert_allclose(warmed[6], 0.5, atol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(warmup_steps=2), [0.5, 1, 1, 1, 1, 1]),
        (Schedule(warmup_steps=1), [1, 1, 1, 1, 1, 1]),
        (StepDecay(warmup_steps=2, milestones=(0.5,)), [0.5, 1, 1, 0.1, 0.1, 0.1]),
        (LinearDecay(warmup_steps=2), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (LinearDecay(warmup_steps=2, warmup_fraction=0.0), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (LinearDecay(warmup_fraction=1 / 3), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (OneCycle(warmup_steps=3), rates(OneCycle(warmup_fraction=0.5), range(6), 6)),
    ],
)
def test_every_schedule_has_a_warmup(schedule, expected):
    np.testing.assert_allclose(rates(schedule, range(6), 6), expected, rtol=1e-6)


def test_linear_rises_for_its_fraction_of_the_run_and_falls_to_zero():
    factors = LinearDecay(warmup_fraction=0.2).build(1.0, total_steps=10)(jnp.arange(11))
    expected = [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
    assert rates(LinearDecay(warmup_fraction=0.0), [0], 4) == [1]


def test_step_decay_drops_at_its_milestones():
    # torch.optim.lr_scheduler.MultiStepLR(milestones=[3, 6], gamma=0.1), by hand.
    dropped = rates(StepDecay(), range(9), 9)
    np.testing.assert_allclose(dropped, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)
    np.testing.assert_allclose(rates(StepDecay(milestones=(0.5,), decay=0.5), [4, 5], 10), [1, 0.5])
    # Both milestones of a run of two steps are at step 1.
    np.testing.assert_allclose(rates(StepDecay(), [0, 1], 2), [1, 0.01], rtol=1e-6)


def pytorchs(make, total_steps):
    """The learning rate of each step of a scheduler that `make` creates for an optimizer."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, found = make(optimizer, torch.optim.lr_scheduler), []
    for step in range(total_steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if step < total_steps - 1:  # OneCycleLR refuses more
            scheduler.step()
    return np.array(found)


def one_cycle(pct_start, div_factor, final_div_factor):
    return lambda optimizer, torch, n: torch.OneCycleLR(
        optimizer,
        PEAK,
        total_steps=n,
        cycle_momentum=False,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


def after_warmup(make, warmup):
    def made(optimizer, torch, n):
        first = torch.LinearLR(optimizer, 1 / warmup, 1, warmup - 1)
        return torch.SequentialLR(optimizer, [first, make(optimizer, torch, n - warmup)], [warmup])

    return made


def linear(optimizer, torch, n):
    return torch.LinearLR(optimizer, 1, 0, n)


def cosine(optimizer, torch, n):
    return torch.CosineAnnealingLR(optimizer, n, 0.2 * PEAK)


PAIRS = {
    "constant": (Schedule(), lambda optimizer, torch, n: torch.ConstantLR(optimizer, 1)),
    "warmed constant": (
        Schedule(warmup_steps=7),
        lambda optimizer, torch, n: torch.LinearLR(optimizer, 1 / 7, 1, 6),
    ),
    "cosine": (Cosine(final_factor=0.2), cosine),
    "warmed cosine": (Cosine(warmup_steps=7, final_factor=0.2), after_warmup(cosine, 7)),
    "linear": (LinearDecay(warmup_fraction=0), linear),
    "warmed linear": (LinearDecay(warmup_steps=7), after_warmup(linear, 7)),
    "steps": (
        StepDecay(decay=0.3),
        lambda optimizer, torch, n: torch.MultiStepLR(
            optimizer, [round(n / 3), round(2 * n / 3)], 0.3
        ),
    ),
    "one cycle": (OneCycle(), one_cycle(0.3, 25.0, 1e4)),
    "one cycle by half": (
        OneCycle(warmup_fraction=0.5, initial_factor=0.1, final_factor=0.001),
        one_cycle(0.5, 10.0, 100.0),
    ),
    "one cycle in steps": (OneCycle(warmup_steps=7), lambda *a: one_cycle(7 / a[2], 25.0, 1e4)(*a)),
    "one cycle that only falls": (OneCycle(warmup_fraction=0.0), one_cycle(0.0, 25.0, 1e4)),
}


@pytest.mark.parametrize("total_steps", [10, 37, 100])
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_pytorchs(name, total_steps):
    ours, make = PAIRS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SequentialLR about its parts
        theirs = pytorchs(lambda *a: make(*a, total_steps), total_steps)
    single = rates(ours, range(total_steps), total_steps, PEAK)
    np.testing.assert_allclose(single, theirs, rtol=0, atol=3e-7 * PEAK)
    with jax.enable_x64(True):
        double = rates(ours, range(total_steps), total_steps, PEAK)
    np.testing.assert_allclose(double, theirs, rtol=0, atol=1e-14)


def test_one_cycle_may_peak_at_the_first_step():
    """PyTorch divides by zero there."""
    found = rates(OneCycle(warmup_fraction=0.1), range(10), 10)
    assert found[0] == 1
    assert np.all(np.diff(found) < 0)
    assert found[-1] == pytest.approx(4e-6, rel=1e-3)
    assert rates(OneCycle(warmup_fraction=0.1), [11], 10) == [found[-1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(warmup_steps=-1), "warmup_steps must not be negative, got -1"),
        (lambda: Cosine(warmup_steps=-1), "warmup_steps must not be negative, got -1"),
        (lambda: Cosine(decay_steps=0), "decay_steps must be at least 1 or None, got 0"),
        (lambda: LinearDecay(warmup_fraction=1.0), r"warmup_fraction must be in \[0, 1\), got 1.0"),
        (
            lambda: LinearDecay(warmup_steps=5, warmup_fraction=0.2),
            "warmup_steps and warmup_fraction are mutually exclusive, got 5 and 0.2; set one",
        ),
        (
            lambda: OneCycle(warmup_steps=5, warmup_fraction=0.2),
            "warmup_steps and warmup_fraction are mutually exclusive, got 5 and 0.2; set one",
        ),
        (lambda: OneCycle(warmup_fraction=1.0), r"warmup_fraction must be in \[0, 1\), got 1.0"),
        (lambda: OneCycle(initial_factor=25.0), r"initial_factor must be in \[0, 1\], got 25.0"),
        (lambda: OneCycle(final_factor=-0.1), r"final_factor must be in \[0, 1\], got -0.1"),
        (lambda: StepDecay(milestones=(30.0,)), r"milestones must be fractions .* got \(30.0,\)"),
        (lambda: StepDecay(decay=-0.1), "decay must not be negative, got -0.1"),
    ],
)
def test_impossible_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
