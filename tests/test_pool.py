"""Jobs of a pool, with a stand-in for Ray whose workers finish in any order."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from uqcalc.cluster import Pool, RayWorkers
from uqcalc.errors import RecordError


class TaskError(Exception):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class ActorError(Exception):
    pass


class Future:
    def __init__(self, run, job):
        self.run, self.job = run, job


class Actor:
    def __init__(self, kind, make):
        self.worker = kind(make)
        self.do = SimpleNamespace(remote=self._do)

    def _do(self, task, job):
        return Future(lambda: self.worker.do(task, job), job)


class Ray:
    """Counts the jobs without an answer so far."""

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayActorError=ActorError)

    def __init__(self):
        self.random = random.Random(0)
        self.most = 0

    def remote(self, kind):
        made = SimpleNamespace(remote=lambda make: Actor(kind, make))
        return SimpleNamespace(options=lambda **_: made)

    def wait(self, futures, num_returns):
        assert num_returns == 1
        self.most = max(self.most, len(futures))
        return [self.random.choice(futures)], None

    def get(self, future):
        if future.job == "dead":
            raise ActorError("the actor died")
        if future.job == "unmade":
            raise ActorError("an error raised in its creation task")
        try:
            return future.run()
        except ValueError as error:
            raise TaskError(error) from error


def twice(made, job):
    if job == "bad":
        raise ValueError(job)
    return made + 2 * job


def pool(workers=3):
    ray = Ray()
    return ray, Pool(ray, RayWorkers(lambda: 0.5, workers))


@pytest.mark.parametrize("ahead", [1, 2])
def test_answers_come_in_the_order_of_the_jobs_and_few_wait(ahead):
    ray, own = pool()
    taken = []
    jobs = (taken.append(job) or job for job in range(200))
    for place, answer in enumerate(own.each(twice, jobs, ahead=ahead)):
        assert answer == 0.5 + 2 * place
        assert len(taken) - place <= 3 * (ahead + 1)  # only these are in memory
    assert len(taken) == 200
    assert ray.most == 3 * ahead
    assert list(own.each(twice, [])) == []


def test_errors_of_a_job_are_raised_and_a_lost_one_may_have_an_answer():
    _, own = pool()
    with pytest.raises(ValueError, match="bad"):
        list(own.each(twice, [1, "bad", 2]))
    with pytest.raises(RecordError, match="must survive a job"):
        list(own.each(twice, [1, "dead", 2]))
    found = list(own.each(twice, [1, "dead", 2], lost=lambda job: f"lost {job}"))
    assert found == [2.5, "lost dead", 4.5]
    with pytest.raises(RecordError, match="creation task"):
        list(own.each(twice, [1, "unmade"], lost=lambda job: f"lost {job}"))
