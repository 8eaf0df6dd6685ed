"""Waiting for a job as a splittable DoFn: the tracker's moves, and the pacer for runners that
hurry.
"""

from __future__ import annotations

import pytest

from beam_llm.transforms.waiting import FINISHED, JobPositions, JobTracker, Pacer, Position


def test_a_checkpoint_leaves_the_claimed_position_for_later():
    tracker = JobTracker(Position(0, 0.0))
    assert tracker.try_claim(Position(0, 50.0))
    primary, residual = tracker.try_split(0)
    assert residual == Position(0, 50.0)
    assert primary.phase == FINISHED
    assert tracker.check_done()
    assert not tracker.try_claim(Position(1, 0.0))


def test_a_job_is_never_split_in_the_middle():
    assert JobTracker(Position(0, 0.0)).try_split(0.5) is None


def test_a_finished_job_has_no_residual():
    tracker = JobTracker(Position(0, 0.0))
    assert tracker.try_claim(Position(FINISHED, 0.0))
    assert tracker.try_split(0) is None
    assert tracker.check_done()


def test_an_unfinished_job_is_not_done():
    with pytest.raises(ValueError, match="without a checkpoint"):
        JobTracker(Position(0, 0.0)).check_done()


def test_a_drain_keeps_the_job_and_the_restriction_stays_small():
    provider = JobPositions()
    position = Position(1, 1.7e9)
    assert provider.truncate("ref", position) == position
    assert provider.create_tracker(position).is_bounded()
    coder = provider.restriction_coder()
    assert Position(*coder.decode(coder.encode(Position(FINISHED, 1.5)))) == Position(FINISHED, 1.5)
    assert len(coder.encode(position)) < 64


class Time:
    def __init__(self):
        self.now, self.slept = 100.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_an_early_resume_sleeps_a_slice_and_not_at_the_provider():
    time = Time()
    pacer = Pacer(lambda: time.now, time.sleep)
    assert pacer.early("a", 130.0)
    assert time.slept == [1.0]


def test_a_look_that_is_due_never_sleeps():
    time = Time()
    assert not Pacer(lambda: time.now, time.sleep).early("a", 100.0)
    assert time.slept == []


def test_the_slice_ends_when_another_job_of_the_process_is_due():
    time = Time()
    pacer = Pacer(lambda: time.now, time.sleep)
    assert pacer.early("soon", 101.25)
    assert pacer.early("late", 200.0)
    assert time.slept == [1.0, 0.25]
    assert not pacer.early("soon", 101.25)


def test_a_due_time_within_the_slice_is_waited_for():
    time = Time()
    pacer = Pacer(lambda: time.now, time.sleep)
    assert not pacer.early("a", 100.5)
    assert time.slept == [0.5]


def test_due_times_of_jobs_that_were_resumed_elsewhere_do_not_make_others_spin():
    time = Time()
    pacer = Pacer(lambda: time.now, time.sleep)
    for job in range(5):
        assert pacer.early(job, 103.5 + job)
    time.now, time.slept = 200.0, []
    for _ in range(4):
        assert pacer.early("mine", 300.0)
    assert time.slept == [1.0] * 4


def test_a_job_that_is_due_now_ends_the_sleep_of_others_without_a_spin():
    time = Time()
    pacer = Pacer(lambda: time.now, time.sleep)
    assert pacer.early("soon", 101.5)
    time.now, time.slept = 101.75, []
    assert pacer.early("late", 200.0)
    assert 0 < time.slept[0] < 0.1


def test_a_look_that_a_clock_set_back_would_put_off_for_a_day_is_made_now():
    time = Time()
    assert not Pacer(lambda: time.now, time.sleep).early("a", 100.0 + 86_400.0)
    assert time.slept == []
