"""The executor: every phase ends with one answer, whatever the order, and after any restart."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.agents.actions import Answer, Free, Outcome, Spawn, Stop, Tell, Word
from moectl.agents.executor import Seen, SeenWorker, decide, merge_figures
from moectl.core.plan import DeviceId, Phase, Placement, Prediction, TransitionKind
from moectl.core.records import TransitionRecord
from moectl.core.transitions import WorkerState

DEVICES = [DeviceId(node, device) for node in ("n1", "n2") for device in ("d0", "d1", "d2")]
FORWARD = (Phase.PREPARE, Phase.COMMIT, Phase.RETIRE)
PREDICTION = Prediction(0, 0, 0, {}, 0.0, 0.0, 0)


def placement(epoch, devices, instances=None):
    ranks = tuple(devices)
    owners = (((0,),),) if ranks else ()
    return Placement("chat", epoch, ranks, owners, tuple(instances or [1] * len(ranks)))


def transition(phase, old, new, kind=TransitionKind.SCALE):
    return TransitionRecord(
        operation_id="op",
        model="chat",
        kind=kind,
        phase=phase,
        generation=1,
        old=old,
        new=new,
        steps=(),
        prediction=PREDICTION,
        accepted_at=0.0,
        phase_at={},
        deadline_at=0.0,
        store_address="",
        model_spec={},
    )


def serving(device, instance=1, epoch=1, **fields):
    return SeenWorker(device, instance, WorkerState.SERVING, epoch, **fields)


def lost(device, instance=1):
    return SeenWorker(device, instance, WorkerState.LOST, 1, message="process 7 died")


class Land:
    """One node that does what it is told: the simplest world in which phases can be run."""

    def __init__(self, node, workers=()):
        self.node = node
        self.workers = {worker.device: worker for worker in workers}
        self.pages = {device for device in self.workers}
        self.outcomes = {}
        self.answers = []
        self.leaving = set()
        self.log = []

    def run(self, record, rng, *, forget_chance=0.0, fail_key=None):
        """Perform due actions in any order until the phase is answered; returns the answer."""
        for _ in range(200):
            answered = self.answers[-1].phase if self.answers else None
            due = decide(record, Seen(self.node, self.workers, self.outcomes, answered))
            if not due:
                return self.answers[-1] if self.answers else None
            action = rng.choice(due)
            if isinstance(action, Answer):
                assert len(due) == 1
                self.answers.append(action)
                return action
            self._perform(action, record, failed=action.key == fail_key)
            if rng.random() < forget_chance:
                self.outcomes = {}  # the agent was killed and started again
        raise AssertionError(f"no answer after 200 actions: {self.log[-5:]}")

    def _perform(self, action, record, failed):
        self.log.append(action)
        device = action.device
        if failed:
            self.outcomes[action.key] = Outcome(False, "told to fail")
            return
        if isinstance(action, Spawn):
            assert device not in self.workers or not self.workers[device].is_alive
            state = WorkerState.STARTING
            self.workers[device] = SeenWorker(device, action.instance, state, -1)
        elif isinstance(action, Stop):
            assert self.workers[device].instance == action.instance
            del self.workers[device]
        elif isinstance(action, Free):
            assert device not in self.workers or not self.workers[device].is_alive
            self.pages.discard(device)
        else:
            self._told(action, record)
        figures = {"prepare_s": 2.0, "bytes_copied": 3.0} if isinstance(action, Tell) else {}
        self.outcomes[action.key] = Outcome(True, figures=figures)

    def _told(self, action, record):
        worker = self.workers[action.device]
        assert worker.is_alive
        if action.word is Word.PREPARE:
            self.pages.add(action.device)
        elif action.word is Word.COMMIT:
            self.workers[action.device] = serving(action.device, worker.instance, record.new.epoch)
        elif action.word is Word.LEAVE:
            self.leaving.add(action.device)
        elif action.word is Word.RETURN:
            self.leaving.discard(action.device)


def run_phases(land, change, rng, phases, **options):
    """The answers to some phases of a change, which is (old, new, kind)."""
    return [land.run(transition(phase, *change), rng, **options) for phase in phases]


@settings(max_examples=300, deadline=None)
@given(
    before=st.integers(0, 6),
    after=st.integers(0, 6),
    seed=st.integers(0, 2**32),
    forget=st.sampled_from([0.0, 0.3]),
)
def test_any_scale_ends_with_exactly_the_new_ranks(before, after, seed, forget):
    rng = random.Random(seed)
    old_devices = rng.sample(DEVICES, before)
    new_devices = old_devices[:after] + [d for d in DEVICES if d not in old_devices]
    new_devices = new_devices[:after]
    old = placement(1, old_devices) if old_devices else None
    new = placement(2, new_devices)
    mine_old = [device for device in old_devices if device.node == "n1"]
    mine_new = {device for device in new_devices if device.node == "n1"}
    land = Land("n1", [serving(device) for device in mine_old])
    change = (old, new, TransitionKind.SCALE)
    answers = run_phases(land, change, rng, FORWARD, forget_chance=forget)
    if not mine_old and not mine_new:
        assert answers == [None, None, None] and not land.log
        return
    assert [answer.ok for answer in answers] == [True, True, True]
    assert [answer.phase for answer in answers] == list(FORWARD)
    assert set(land.workers) == mine_new
    assert land.pages == mine_new
    assert all(worker.epoch == 2 for worker in land.workers.values())


@settings(max_examples=300, deadline=None)
@given(
    before=st.integers(1, 6),
    after=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    steps=st.integers(0, 12),
    forget=st.sampled_from([0.0, 0.3]),
)
def test_a_forfeit_at_any_point_leaves_the_old_epoch_as_it_was(before, after, seed, steps, forget):
    rng = random.Random(seed)
    old = placement(1, rng.sample(DEVICES, before))
    new = placement(2, rng.sample(DEVICES, after))
    mine = {device for device in old.ranks if device.node == "n1"}
    land = Land("n1", [serving(device) for device in sorted(mine)])
    record = transition(Phase.PREPARE, old, new)
    for _ in range(steps):
        due = decide(record, Seen("n1", land.workers, land.outcomes))
        if not due or isinstance(due[0], Answer):
            break
        land._perform(rng.choice(due), record, failed=rng.random() < 0.1)
    answer = land.run(transition(Phase.FORFEIT, old, new), rng, forget_chance=forget)
    assert answer is None or answer.ok
    assert set(land.workers) == mine
    assert land.pages == mine
    assert not land.leaving


def test_a_rank_takes_requests_again_only_when_its_forfeit_is_done():
    old, new = placement(1, DEVICES[:2]), placement(2, DEVICES[:1])
    land = Land("n1", [serving(device) for device in DEVICES[:2]])
    rng, record = random.Random(3), transition(Phase.FORFEIT, old, new)

    def words():
        due = decide(record, Seen("n1", land.workers, land.outcomes))
        return {a.word for a in due if isinstance(a, Tell) and a.device == DEVICES[1]}

    assert words() == {Word.FORFEIT}  # its KV is lent still
    land._perform(Tell("op", DEVICES[1], Word.FORFEIT), record, failed=False)
    assert words() == {Word.RETURN}
    answer = land.run(record, rng)
    assert answer.ok and not land.leaving


def test_a_failed_step_of_prepare_is_answered_with_its_reason():
    old, new = placement(1, DEVICES[:1]), placement(2, DEVICES[:2])
    rng = random.Random(1)
    for key in ("op spawn n1/d1 1", "op prepare n1/d0", "op prepare n1/d1"):
        land = Land("n1", [serving(DEVICES[0])])
        answer = land.run(transition(Phase.PREPARE, old, new), rng, fail_key=key)
        assert not answer.ok and "told to fail" in answer.error


def test_a_staying_rank_that_is_dead_fails_prepare():
    old, new = placement(1, DEVICES[:2]), placement(2, DEVICES[:1])
    seen = Seen("n1", {DEVICES[0]: lost(DEVICES[0]), DEVICES[1]: serving(DEVICES[1])})
    (answer,) = decide(transition(Phase.PREPARE, old, new), seen)
    assert not answer.ok and "n1/d0" in answer.error


def test_a_dead_leaving_rank_does_not_hinder_and_its_pages_are_freed():
    old, new = placement(1, DEVICES[:2]), placement(2, DEVICES[:1])
    land = Land("n1", [serving(DEVICES[0]), lost(DEVICES[1])])
    answers = run_phases(land, (old, new, TransitionKind.SCALE), random.Random(3), FORWARD)
    assert all(answer.ok for answer in answers)
    assert land.pages == {DEVICES[0]}


def test_a_joining_worker_that_dies_while_preparing_is_reported():
    old, new = placement(1, DEVICES[:1]), placement(2, DEVICES[:2])
    seen = Seen(
        "n1",
        {DEVICES[0]: serving(DEVICES[0]), DEVICES[1]: lost(DEVICES[1])},
        {"op spawn n1/d1 1": Outcome(True)},
    )
    (answer,) = decide(transition(Phase.PREPARE, old, new), seen)
    assert not answer.ok and "process 7 died" in answer.error


def test_a_heal_starts_the_lost_rank_anew_and_keeps_its_pages_when_forfeited():
    old = placement(1, DEVICES[:2])
    new = placement(2, DEVICES[:2], instances=[1, 2])
    land = Land("n1", [serving(DEVICES[0]), lost(DEVICES[1])])
    rng = random.Random(5)
    heal = (old, new, TransitionKind.HEAL)
    (answer,) = run_phases(land, heal, rng, (Phase.PREPARE,))
    assert answer.ok and land.workers[DEVICES[1]].instance == 2
    (undone,) = run_phases(land, heal, rng, (Phase.FORFEIT,))
    assert undone.ok and DEVICES[1] not in land.workers
    assert DEVICES[1] in land.pages  # the next attempt adopts them


def test_a_rank_that_is_behind_is_stopped_before_its_successor_starts():
    old = placement(1, DEVICES[:1])
    new = placement(2, DEVICES[:1], instances=[2])
    record = transition(Phase.PREPARE, old, new, TransitionKind.HEAL)
    seen = Seen("n1", {DEVICES[0]: serving(DEVICES[0])})
    assert decide(record, seen) == (Stop("op", DEVICES[0], 1),)


def test_who_dies_during_commit_is_not_waited_for():
    old, new = placement(1, DEVICES[:2]), placement(2, DEVICES[:2])
    seen = Seen("n1", {DEVICES[0]: serving(DEVICES[0], epoch=2), DEVICES[1]: lost(DEVICES[1])})
    record = transition(Phase.COMMIT, old, new)
    assert decide(record, seen) == (Tell("op", DEVICES[0], Word.COMMIT),)
    done = Seen("n1", seen.workers, {"op commit n1/d0": Outcome(True, figures={"pause_ms": 4.0})})
    (answer,) = decide(record, done)
    assert answer.ok and answer.figures == {"pause_ms": 4.0}


def test_deleting_ends_all_workers_and_frees_all_pages():
    old, new = placement(3, DEVICES[:3]), placement(4, [])
    land = Land("n1", [serving(device) for device in DEVICES[:3]])
    answers = run_phases(land, (old, new, TransitionKind.DELETE), random.Random(2), FORWARD)
    assert all(answer.ok for answer in answers)
    assert not land.workers and not land.pages


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FORFEITED])
def test_nothing_is_done_when_it_is_over(phase):
    record = transition(phase, placement(1, DEVICES[:1]), placement(2, DEVICES[:2]))
    assert decide(record, Seen("n1", {})) == ()


def test_figures_of_workers_are_joined_by_their_suffix():
    parts = [
        {"prepare_s": 1.0, "bytes_copied": 5.0, "pause_ms": 3.0, "flip_step": 7.0},
        {"prepare_s": 2.0, "bytes_copied": 6.0, "pause_ms": 1.0, "flip_step": 8.0},
    ]
    merged = {"prepare_s": 2.0, "bytes_copied": 11.0, "pause_ms": 3.0, "flip_step": 8.0}
    assert merge_figures(parts) == merged
