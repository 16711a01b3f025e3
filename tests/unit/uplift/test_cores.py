"""Work side by side: what each thread may take, and that it changes no result."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Binned, Fold, Settings, cross_fit
from uplift.cores import at_once, cores, each, own_threads
from uplift.learners import make_learner

SETTINGS = Settings(rounds=40, learning_rate=0.1, num_leaves=7, min_child_samples=20)


def test_as_many_at_a_time_as_there_are_threads() -> None:
    """Three works meet, which they can only if all three run; a fourth has to wait for one."""
    meeting, running, most = threading.Barrier(3), [0], [0]
    counting = threading.Lock()

    def work(item: int) -> int:
        with counting:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if item < 3:
            meeting.wait(timeout=30)
        with counting:
            running[0] -= 1
        return item * item

    assert each(3, work, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    assert most == [3]


def test_work_beside_others_takes_one_thread_and_its_part_of_the_cores() -> None:
    def work(item: int) -> tuple[int, int, set[int]]:
        inner = each(4, lambda _: threading.get_ident(), range(5))
        return own_threads(4), at_once(4, 5), {*inner} ^ {threading.get_ident()}

    assert each(2, work, range(2)) == [(1, 1, set())] * 2
    assert (own_threads(4), at_once(4, 5), at_once(4, 3)) == (4, 4, 3)
    assert each(5, lambda _: (own_threads(4), at_once(5, 9)), range(2)) == [(1, 2)] * 2
    # Alone it runs where it was asked for, and may share.
    assert each(4, lambda _: (threading.get_ident(), at_once(4, 5)), [0]) == [
        (threading.get_ident(), 4)
    ]


def test_the_first_error_is_raised_and_what_waits_is_left() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        each(2, work, range(1000))
    assert len(begun) < 1000


def test_cores_are_what_openmp_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (cores(0), cores(2)) == (3, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert cores(0) == len(os.sched_getaffinity(0))


def test_threads_change_no_bit_and_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Arms beside each other in one experiment, folds in the other, where there is one arm."""
    for arms in (1, 3):
        rng = np.random.default_rng(arms)
        X = rng.standard_normal((1500, 4)).astype(np.float32)
        assignment = np.full((1500, arms + 1), 1 / (arms + 1))
        arm = draw_arms(assignment, rng)
        y = X[:, 0] + arm * (X[:, 1] > 0) + rng.standard_normal(1500)
        found = []
        for threads in (1, 3):
            problem = problem_of(
                training_set(X, arm, y, assignment), replace(SETTINGS, threads=threads), folds=3
            )
            found.append(problem.gamma)
            for name in ("s", "x", "dr", "per_redemption", "two_part"):
                fitted = make_learner(name).fit(problem)
                found += [fitted.oof, fitted.model.predict(X, 1)]
        for one, other in zip(found[:11], found[11:], strict=True):
            assert np.array_equal(one, other)
    written = capfd.readouterr()
    assert "LightGBM" not in written.out + written.err


def test_rounds_are_the_same_where_folds_grow_by_several_at_a_time() -> None:
    """Trees beyond the one at which they stop are grown, and never used."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((2000, 3)).astype(np.float32)
    y = 0.3 * X[:, 0] + rng.standard_normal(2000)
    fold = rng.integers(0, 4, 2000)
    settings = replace(SETTINGS, rounds=57)  # the last block is a short one
    parts = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(4)]
    folds = [Fold(a, y[a], None, b, y[b], None) for a, b in parts]
    fits, curves = [], []
    for threads in (1, 2):
        own, data = replace(settings, threads=threads), Binned(X, [], 1)
        fits.append(cross_fit(data, np.arange(2000), y, fold, own))
        curves.append(data.fit_beside(folds, own)[1])
    assert np.array_equal(*curves)
    assert len(curves[0]) % 10 != 0
    assert 0 < fits[0].rounds == fits[1].rounds
    models = [(*fit.models, fit.full) for fit in fits]
    for one, other in zip(*models, strict=True):
        assert np.array_equal(one.predict(X, 1), other.predict(X, 1))
