"""The collector's settings are changed while somebody works, and given back by the last."""

from __future__ import annotations

import gc

import pytest

from beam_llm.transforms.gc_tuning import QuietGc


@pytest.fixture
def as_it_was():
    """Nothing is frozen at first, as in a worker; the tests' own process has frozen what it collected."""
    gc.unfreeze()
    before = gc.get_threshold(), gc.get_freeze_count()
    yield before
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    gc.freeze()


def test_the_first_holds_and_the_last_releases(as_it_was):
    quiet_gc = QuietGc()
    quiet_gc.acquire()
    quiet_gc.acquire()
    assert gc.get_threshold()[0] > as_it_was[0][0]
    assert gc.get_freeze_count() > 0
    quiet_gc.release()
    assert gc.get_freeze_count() > 0
    quiet_gc.release()


def test_what_somebody_else_has_set_is_left_alone(as_it_was):
    gc.freeze()
    gc.set_threshold(200_000, 5, 5)
    try:
        quiet_gc = QuietGc()
        quiet_gc.acquire()
        assert gc.get_threshold() == (200_000, 5, 5)
        quiet_gc.release()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*as_it_was[0])


def test_a_collector_that_is_off_stays_off(as_it_was):
    gc.disable()
    try:
        quiet_gc = QuietGc()
        quiet_gc.acquire()
        quiet_gc.release()
        assert not gc.isenabled()
    finally:
        gc.enable()
