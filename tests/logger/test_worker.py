"""The wall between training and a logger."""

import logging
import threading
import time
from functools import partial

import pytest

from llmexp.logger.worker import Worker


def _fail() -> None:
    raise ValueError("no\nluck")


def test_calls_run_in_order_on_another_thread() -> None:
    seen: list[int] = []
    threads: set[int] = set()

    def note_thread() -> None:
        threads.add(threading.get_ident())

    worker = Worker("W", vital=())
    for number in range(100):
        worker.submit("metrics", partial(seen.append, number))
    worker.submit("metrics", note_thread)
    worker.close(lambda: seen.append(100))
    assert worker.join(10)
    assert seen == list(range(101))
    assert threads.isdisjoint({threading.get_ident()})


def test_a_feature_that_fails_is_said_once_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []
    worker = Worker("W", vital=("metrics",))
    for _ in range(3):
        worker.submit("samples", _fail)
        worker.submit("metrics", lambda: seen.append("metrics"))
    worker.close(lambda: seen.append("finish"))
    assert worker.join(10)
    assert seen == ["metrics"] * 3 + ["finish"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("W: samples failed (no luck); training")


def test_when_a_vital_feature_fails_only_the_finish_still_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []
    worker = Worker("W", vital=("metrics",))
    worker.submit("metrics", _fail)
    worker.submit("samples", lambda: seen.append("samples"))

    def last() -> None:
        seen.append("finish")
        _fail()

    worker.close(last)
    assert worker.join(10)
    assert seen == ["finish"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_call_that_leaves_the_program_leaves_only_the_thread() -> None:
    worker = Worker("W", vital=())
    worker.submit("teardown", lambda: exit(3))
    worker.close(lambda: None)
    assert worker.join(10)


def test_nobody_waits_for_a_call_that_hangs() -> None:
    release = threading.Event()
    worker = Worker("W", vital=())
    begun = time.perf_counter()
    worker.submit("metrics", lambda: release.wait(60))
    worker.close(lambda: None)
    assert not worker.join(0.1)
    assert time.perf_counter() - begun < 5
    release.set()
    assert worker.join(10)
