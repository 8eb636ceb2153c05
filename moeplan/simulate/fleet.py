"""Replicas over time: started, scaled, failed, preempted, updated. One simpy event per control event.

The kernel advances all replicas to the next event; then the event changes who accepts requests, and takes requests off
replicas that go. Those are sent again with the tokens they have, which are recomputed, or end as lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simpy

from moeplan.kernels import engine_state as state
from moeplan.simulate.pool import Queues, ReplicaPool
from moeplan.spec.fleet import Autoscaling, Fleet, RollingUpdate, Spot

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Process = Generator[simpy.Event, None, None]

OFF, STARTING, READY, DRAINING, REPAIR, GONE = "off", "starting", "ready", "draining", "repair", "gone"
_NOT_HELD = (OFF, GONE)  # no hardware: not wanted, or taken back and not found again yet
_N_OTHER_STREAMS = 8  # of random numbers drawn from the seed for requests
WINDOW_S = 1.0  # between looks at the queues, at first
MOST_SAMPLES = 400  # of the queues; when there are more, every other one goes and windows double
POLL_S = 1.0  # how often a replica that drains is looked at
MOST_IDLE_EVENTS = 5_000  # control events in a row with requests but none that ends: none ever will


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The fleet at an instant."""

    at_s: float
    queues: Queues
    ready: int


@dataclass(slots=True)
class FleetHistory:
    """What the fleet did. Arrays of shape (n_replicas,) and (n_requests,)."""

    samples: list[Sample]
    held_s: Floats  # hardware held, from the decision to start to the release
    ready_s: Floats  # able to take requests or finishing them
    retries: Ints  # times a request was sent again
    end_s: float
    counts: dict[str, int] = field(default_factory=dict)  # failures, preemptions, starts, stops, replaced

    @classmethod
    def steady(cls, pool: ReplicaPool, samples: list[Sample], end_s: float) -> FleetHistory:
        """Of replicas that were there all the time."""
        whole_s = np.full(pool.pool.replicas.size, end_s)
        return cls(samples, whole_s, whole_s.copy(), np.zeros(pool.requests.size, np.int64), end_s)


@dataclass(slots=True)
class _Replica:
    state: str
    since_s: float
    version: int = 0  # of the software; a rolling update changes it
    change: int = 0  # counts changes of state: a process that waited sees whether it is still meant
    life: int = 0  # counts starts: what may befall a replica is drawn once in each


class FleetRun:
    """One simulation. ``cold_start_s``: from a decision to the first request."""

    def __init__(
        self,
        pool: ReplicaPool,
        fleet: Fleet,
        n_start: int,
        *,
        gpus_per_replica: int,
        cold_start_s: float,
        seed: int,
        window_s: float = WINDOW_S,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.pool, self.fleet, self.progress = pool, fleet, progress
        self.gpus_per_replica, self.cold_start_s, self.window_s = gpus_per_replica, cold_start_s, window_s
        self.environment = simpy.Environment()
        n_replicas = pool.pool.replicas.size
        self.replicas = [_Replica(READY if i < n_start else OFF, 0.0) for i in range(n_replicas)]
        self.wanted = n_start
        spawned = np.random.SeedSequence(seed).spawn(_N_OTHER_STREAMS + n_replicas)
        self.rngs = [np.random.default_rng(s) for s in spawned[_N_OTHER_STREAMS:]]
        self.history = FleetHistory(
            [], np.zeros(n_replicas), np.zeros(n_replicas), np.zeros(pool.requests.size, np.int64), 0.0
        )
        self._over = self.environment.event()
        self._idle_events = 0
        self._n_ended = -1

    def run(self) -> FleetHistory:
        """To the end of every request."""
        environment, fleet = self.environment, self.fleet
        environment.process(self._windows())
        if fleet.autoscaling is not None:
            environment.process(self._autoscale(fleet.autoscaling))
        if fleet.update is not None:
            environment.process(self._update(fleet.update))
        for i, replica in enumerate(self.replicas):
            if replica.state == READY:
                self._begin_life(i)
        environment.run(self._over)
        if self._n_ended < self.pool.requests.size:
            self._give_up()
        self._sample()
        self.history.end_s = float(self.pool.requests["finish_s"].max())
        for i in range(len(self.replicas)):
            self._account(i, self.history.end_s)
        return self.history

    @property
    def now_s(self) -> float:
        return float(self.environment.now)

    # Control events

    def _windows(self) -> Process:
        """Looks at the queues, reports progress and lets an interrupt through."""
        while True:
            yield self.environment.timeout(self.window_s)
            ended = self._advance()
            self._sample()
            if self.progress is not None:
                self.progress(ended / self.pool.requests.size)

    def _sample(self) -> None:
        samples = self.history.samples
        if samples and samples[-1].at_s == self.now_s:
            return
        samples.append(Sample(self.now_s, self.pool.queues(), sum(r.state == READY for r in self.replicas)))
        if len(samples) >= MOST_SAMPLES:
            del samples[::2]
            self.window_s *= 2.0

    def _autoscale(self, policy: Autoscaling) -> Process:
        """Kubernetes' horizontal autoscaler (its documentation, "Algorithm details")."""
        wishes: list[tuple[float, int]] = []
        while True:
            yield self.environment.timeout(self._until_next_decision(policy))
            self._advance()
            ready = max(1, sum(r.state == READY for r in self.replicas))
            ratio = self._signal(policy) / ready / policy.target
            wish = self.wanted if abs(ratio - 1.0) <= policy.tolerance_frac else math.ceil(ready * ratio - 1e-9)
            wish = min(max(wish, policy.min_replicas), policy.max_replicas)
            wishes = [(at, n) for at, n in wishes if at > self.now_s - policy.cooldown_s]
            wishes.append((self.now_s, wish))
            self.wanted = max(wish, min(self.wanted, max(n for _, n in wishes)))
            self._follow_wanted()

    def _until_next_decision(self, policy: Autoscaling) -> float:
        """The interval, or as many as pass while the smallest fleet there may be has nothing to do."""
        interval_s = policy.interval_s
        queues = self.pool.queues()
        if self.wanted > policy.min_replicas or queues.waiting.any() or queues.running.any():
            return interval_s
        quiet_s = self.pool.next_send_s() - self.now_s
        return interval_s * max(1.0, quiet_s // interval_s) if math.isfinite(quiet_s) else interval_s

    def _begin_life(self, i: int) -> None:
        """Draws what may befall a replica until it goes."""
        life = self.replicas[i].life = self.replicas[i].life + 1
        failures, spot = self.fleet.failures, self.fleet.spot
        if failures is not None and failures.failures_per_gpu_s > 0.0:
            after_s = self.rngs[i].exponential(1.0 / (failures.failures_per_gpu_s * self.gpus_per_replica))
            self.environment.process(self._fail(i, life, after_s, failures.repair_s))
        if spot is not None:
            after_s = self.rngs[i].exponential(1.0 / spot.preemptions_per_replica_s)
            self.environment.process(self._preempt(i, life, after_s, spot))

    def _fail(self, i: int, life: int, after_s: float, repair_s: float) -> Process:
        yield self.environment.timeout(after_s)
        if self.replicas[i].life != life:
            return
        self._advance()
        self._count("failures")
        self._take_down(i, REPAIR)
        yield from self._start_again(i, repair_s)

    def _preempt(self, i: int, life: int, after_s: float, spot: Spot) -> Process:
        """The replica finishes what it can until the notice is over; other capacity is looked for after that."""
        yield self.environment.timeout(after_s)
        if self.replicas[i].life != life:
            return
        self._advance()
        self._count("preemptions")
        self._enter(i, DRAINING)
        yield self.environment.timeout(spot.notice_s)
        if self.replicas[i].life != life:
            return
        self._advance()
        self._take_down(i, GONE)
        yield from self._start_again(i, spot.replacement_s)

    def _update(self, update: RollingUpdate) -> Process:
        yield self.environment.timeout(update.at_s)
        yield from self._roll(1, update, update.rollback_at_s)
        if update.rollback_at_s is not None:
            yield self.environment.timeout(max(0.0, update.rollback_at_s - self.now_s))
            self._count("rollbacks")
            yield from self._roll(0, update, None)

    def _roll(self, version: int, update: RollingUpdate, until_s: float | None) -> Process:
        """Replaces ready replicas of another version, ``batch`` at a time, up to the time of the rollback."""
        wait_s = POLL_S
        while until_s is None or self.now_s < until_s:
            old = [i for i, r in enumerate(self.replicas) if r.version != version and r.state == READY]
            if old:
                replaced = [self.environment.process(self._replace(i, version)) for i in old[: update.batch]]
                yield self.environment.all_of(replaced)
                wait_s = POLL_S
            elif any(r.version != version and r.state != OFF for r in self.replicas):
                yield self.environment.timeout(wait_s)  # others of the old version are on their way
                wait_s *= 2.0
            else:
                break
        for replica in self.replicas:
            if replica.state == OFF:
                replica.version = version

    def _replace(self, i: int, version: int) -> Process:
        self._advance()
        change = self._enter(i, DRAINING)
        yield from self._drain(i, change, self.fleet.drain_s)
        if self.replicas[i].change != change:
            return  # it failed, or was taken back, meanwhile; it comes again with its old version
        self._take_down(i, STARTING)
        self._count("replaced")
        self.replicas[i].version = version
        yield from self._come_up(i, self.replicas[i].change)

    # What happens to one replica

    def _enter(self, i: int, new: str) -> int:
        """Leaves the state, and enters another. Returns the number of the change."""
        replica = self.replicas[i]
        self._account(i, self.now_s)
        if new in (OFF, REPAIR, GONE):
            replica.life += 1
        replica.state, replica.since_s = new, self.now_s
        replica.change += 1
        self.pool.accept(i, new == READY)
        return replica.change

    def _account(self, i: int, until_s: float) -> None:
        """Adds up the time in the state that ends."""
        replica = self.replicas[i]
        spent_s = max(0.0, until_s - replica.since_s)
        if replica.state not in _NOT_HELD:
            self.history.held_s[i] += spent_s
        if replica.state in (READY, DRAINING):
            self.history.ready_s[i] += spent_s

    def _come_up(self, i: int, change: int) -> Process:
        yield self.environment.timeout(self.cold_start_s)
        if self.replicas[i].change == change:
            self._advance()
            self._enter(i, READY)

    def _start(self, i: int) -> None:
        self._count("starts")
        change = self._enter(i, STARTING)
        self._begin_life(i)
        self.environment.process(self._come_up(i, change))

    def _start_again(self, i: int, after_s: float) -> Process:
        """After a repair, or on other capacity; not when the fleet has become smaller meanwhile."""
        change = self.replicas[i].change
        yield self.environment.timeout(after_s)
        if self.replicas[i].change != change:
            return
        if self.fleet.autoscaling is not None and self._n_alive(besides=i) >= self.wanted:
            self._enter(i, OFF)
        else:
            self._start(i)

    def _stop(self, i: int) -> Process:
        """Scaling down."""
        self._count("stops")
        change = self._enter(i, DRAINING)
        yield from self._drain(i, change, self.fleet.drain_s)
        if self.replicas[i].change == change:
            self._take_down(i, OFF)

    def _drain(self, i: int, change: int, longest_s: float) -> Process:
        """Waits until a replica has finished what it has, at most so long."""
        until_s = self.now_s + longest_s
        while self.now_s < until_s and self.replicas[i].change == change:
            queues = self.pool.queues()
            if queues.waiting[i] + queues.running[i] == 0:
                return
            yield self.environment.timeout(min(POLL_S, until_s - self.now_s))
            self._advance()

    def _take_down(self, i: int, new: str) -> None:
        self._enter(i, new)
        self._send_again(self.pool.empty(i, self.now_s))

    def _send_again(self, requests: Ints) -> None:
        retries = self.history.retries
        again = retries[requests] < self.fleet.retries
        retries[requests[again]] += 1
        self.pool.end(requests[~again], state.LOST, self.now_s)
        self.pool.send(requests[again], self.now_s)

    # The fleet as a whole

    def _advance(self) -> int:
        """Runs the replicas to this instant; how many requests have ended."""
        n_ended = self.pool.advance(self.now_s)
        stuck = n_ended == self._n_ended and self.pool.next_send_s() <= self.now_s
        self._idle_events = self._idle_events + 1 if stuck else 0
        self._n_ended = n_ended
        over = n_ended >= self.pool.requests.size or self._idle_events > MOST_IDLE_EVENTS
        if over and not self._over.triggered:
            self._over.succeed()
        return n_ended

    def _signal(self, policy: Autoscaling) -> float:
        """What the policy looks at, summed over ready replicas; requests at the door count as waiting."""
        queues = self.pool.queues()
        ready = np.array([r.state == READY for r in self.replicas])
        if policy.signal == "utilization":
            blocks = max(1, self.pool.limits.n_blocks * self.pool.limits.ranks_per_replica)
            return float(queues.used_blocks[ready].sum() / blocks)
        waiting = float(queues.waiting[ready].sum()) + self.pool.n_at_door(self.now_s)
        return waiting if policy.signal == "queue" else waiting + float(queues.running[ready].sum())

    def _n_alive(self, besides: int = -1) -> int:
        """Replicas that take requests or will."""
        return sum(r.state in (STARTING, READY, REPAIR, GONE) for i, r in enumerate(self.replicas) if i != besides)

    def _follow_wanted(self) -> None:
        surplus = self._n_alive() - self.wanted
        for i, replica in enumerate(self.replicas):
            if surplus < 0 and replica.state == OFF:
                self._start(i)
                surplus += 1
        if surplus <= 0:
            return
        queues = self.pool.queues()
        load = queues.waiting + queues.running
        # those that do not serve yet go first, then the least loaded
        order = sorted(range(len(self.replicas)), key=lambda i: (self.replicas[i].state == READY, load[i]))
        alive = [i for i in order if self.replicas[i].state in (STARTING, READY)]
        for i in alive[:surplus]:
            if self.replicas[i].state == STARTING:
                self._enter(i, OFF)
            else:
                self.environment.process(self._stop(i))

    def _give_up(self) -> None:
        """Nothing is served any more: what is on replicas is lost, the rest found none."""
        for i in range(len(self.replicas)):
            self.pool.end(self.pool.empty(i, self.now_s), state.LOST, self.now_s)
            self._enter(i, OFF)
        self.pool.end(self.pool.unsent(), state.UNSERVED, self.now_s)

    def _count(self, what: str) -> None:
        self.history.counts[what] = self.history.counts.get(what, 0) + 1
