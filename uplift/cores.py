"""Work side by side: one thread of LightGBM on each core, in place of all cores on one fit.

A tree of some ten thousand rows is grown in a millisecond, in dozens of steps; to hand each of them
to several threads and to gather them again takes longer than the steps (docs/benchmarks.md, Scale).
So arms and folds are fitted beside each other, each by one thread. LightGBM lets go of Python's
lock meanwhile, and its results don't depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import lightgbm as lgb
import numpy as np

A = TypeVar("A")
B = TypeVar("B")
_here = threading.local()


def cores(threads: int) -> int:
    """How many threads are meant; 0: OMP_NUM_THREADS, where it is one number, or the cores that
    this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if threads == 0 and told.isdigit():
        threads = int(told)
    if threads == 0 and hasattr(os, "sched_getaffinity"):  # Linux
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count() or 1


def own_threads(threads: int) -> int:
    """Threads for one call of LightGBM: these, but 1 in work that has others beside it. LightGBM
    has one number for the whole process, so it must be the same for all of them: a process that
    trains must not score in other threads meanwhile with another number."""
    return threads if _share() is None else 1


def at_once(threads: int, items: int) -> int:
    """How many of so many items `each` works on at a time."""
    return min(_share() or cores(threads), items)


def _share() -> int | None:
    """Of work beside others, its part of the cores."""
    return getattr(_here, "share", None)


def each(threads: int, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """[work(item) for item in items], `threads` of them at a time (0: all cores); within such work,
    as many as its part of them. The first item's error is raised; what runs is waited for."""
    all_items = list(items)
    most = at_once(threads, len(all_items))
    if most < 2:
        return [work(item) for item in all_items]

    share = (_share() or cores(threads)) // most
    with ThreadPoolExecutor(most, "fit", _begin, (share,)) as pool:
        return list(pool.map(work, all_items))


def _begin(share: int) -> None:
    _here.share = share
    # LightGBM has a level of messages for each thread, and sets it with the parameters of a call.
    lgb.Dataset(np.zeros((2, 1)), params={"verbosity": -1, "num_threads": 1}).construct()
