"""What threads, forks and the end of the interpreter may do to an index: docs/hardening.md is the contract."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from asking import KERNELS, level_of
from indexes import check_answer, pair, same_answer
from tailbound import KVIndex
from tailbound.engine.turns import Turns

EPSILON = 0.05


def filled(keys=900, seed=0, **options):
    gen = torch.Generator().manual_seed(seed)
    key, value = pair(gen, 1, 2, keys, 24, 12, torch.float32, **options)
    return KVIndex(key, value), 2 * torch.randn(1, 4, 2, 24, generator=gen)


@pytest.fixture(params=[1, 2])
def team(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("impl", ["index/torch", *KERNELS])
def test_questions_side_by_side_have_the_bits_of_one_alone(impl, team):
    index, query = filled()
    with level_of(impl):
        named = "torch" if impl == "index/torch" else "native"

        def ask(i):
            return index.attend((1 + i % 3) * query, epsilon=EPSILON, impl=named, return_kept=True)

        alone = [ask(i) for i in range(3)]
        with ThreadPoolExecutor(4) as pool:
            for i, answer in enumerate(pool.map(ask, range(40))):
                same_answer(answer, alone[i % 3])
                assert torch.equal(answer.kept, alone[i % 3].kept)


def until_done(work, refusals):
    """A change or a question until it is let in: what a caller without a lock of its own would do."""
    while True:
        try:
            return work()
        except RuntimeError as error:
            if "another thread is" not in str(error) or "hold one lock around both" not in str(error):
                raise
            refusals.append(str(error).partition(":")[0])
            time.sleep(0)


def test_appending_while_others_ask_is_refused_or_whole(team):
    """Every answer is about the keys after some append, all of them; and no append is lost or written twice."""
    gen = torch.Generator().manual_seed(1)
    key, value = pair(gen, 1, 2, 1200, 24, 12, torch.float32)
    query = 2 * torch.randn(1, 4, 2, 24, generator=gen)
    first, step = 600, 4
    index = KVIndex(key[:, :, :first], value[:, :, :first])
    refusals, answers, over = [], [], threading.Event()

    def append():
        for at in range(first, 1200, step):
            piece = slice(at, at + step)
            until_done(lambda piece=piece: index.append(key[:, :, piece], value[:, :, piece]), refusals)
            time.sleep(1e-4)
        over.set()

    def ask():
        while not over.is_set():
            answers.append(until_done(lambda: index.attend(query, epsilon=EPSILON, return_kept=True), refusals))
            time.sleep(1e-4)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(append), pool.submit(ask), pool.submit(ask)]:
            done.result(timeout=120)
    assert torch.equal(index.key, key)
    assert torch.equal(index.value, value)
    assert len(answers) > 10
    for answer in answers[:: max(1, len(answers) // 30)]:
        n = answer.kept.shape[3]
        assert n % step == 0
        check_answer(answer, query, key[:, :, :n], value[:, :, :n], EPSILON)


def test_changes_from_several_threads_are_refused_or_whole():
    index, _ = filled(keys=0)
    refusals = []

    def append(i):
        one = torch.full((1, 2, 3, 24), float(i))
        until_done(lambda: index.append(one, one[..., :12].clone()), refusals)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(200)))
    assert len(index) == 600
    held = index.key[0, 0, :, 0].reshape(200, 3)
    assert torch.equal(held, held[:, :1].expand(-1, 3))
    assert sorted(held[:, 0].tolist()) == list(range(200))


@pytest.mark.parametrize("change", ["append", "crop", "drop_front", "reorder"])
def test_a_change_in_the_middle_of_a_question_is_refused_and_changes_nothing(change):
    index, query = filled(keys=40)
    before = index.attend(query, epsilon=EPSILON)
    arguments = {
        "append": (torch.ones(1, 2, 1, 24), torch.ones(1, 2, 1, 12)),
        "crop": (5,),
        "drop_front": (5,),
        "reorder": (torch.tensor([0, 0]),),
    }
    token = object()
    index._store.turns.ask(token)
    with pytest.raises(RuntimeError, match=rf"^{change}: another thread is asking this index"):
        getattr(index, change)(*arguments[change])
    same_answer(index.attend(query, epsilon=EPSILON), before)  # a refusal leaves nothing announced
    index._store.turns.done(token)
    index._store.turns.change(token, "append")
    with pytest.raises(RuntimeError, match=rf"^{change}: another thread is changing this index"):
        getattr(index, change)(*arguments[change])
    with pytest.raises(RuntimeError, match=r"^attend: another thread is changing this index"):
        index.attend(query, epsilon=EPSILON)
    index._store.turns.done(token)
    same_answer(index.attend(query, epsilon=EPSILON), before)
    getattr(index, change)(*arguments[change])


def test_an_error_in_a_change_or_a_question_leaves_nothing_announced():
    index, query = filled(keys=40)
    for wrong in (lambda: index.crop(41), lambda: index.attend(query, epsilon=2.0), lambda: index.append(query, query)):
        with pytest.raises(ValueError, match=r"must|out of range|holds"):
            wrong()
    index.crop(40)


def test_copies_begin_with_nobody_at_work_on_them():
    index, query = filled(keys=40)
    index._store.turns.change(object(), "append")
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        other.attend(query, epsilon=EPSILON)
        other.crop(10)
    with pytest.raises(RuntimeError, match="another thread is changing"):  # a shallow copy shares the buffers
        copy.copy(index).attend(query, epsilon=EPSILON)


def test_the_turns_cost_less_than_a_microsecond():
    turns = Turns()

    def once():
        token = object()
        try:
            turns.ask(token)
        finally:
            turns.done(token)

    best = 1.0
    for _ in range(50):
        begun = time.perf_counter()
        for _ in range(200):
            once()
        best = min(best, (time.perf_counter() - begun) / 200)
    assert best < 1e-6


def run(code, *arguments):
    tests = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": tests},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


FORK = """
import os, sys, torch
from tailbound import KVIndex
torch.set_num_threads(2)
gen = torch.Generator().manual_seed(0)
key, value, query = (torch.randn(1, 2, n, 32, generator=gen) for n in (3000, 3000, 2))
index = KVIndex(key, value)
torch.ones(4_000_000).add_(1)  # torch has started its threads
before = index.attend(query, epsilon=0.05, impl="native")
index._store.turns.ask(object()) if sys.argv[1] == "asking" else None
index._store.turns.change(object(), "append") if sys.argv[1] == "changing" else None
child = os.fork()
if child == 0:
    try:
        again = index.attend(query, epsilon=0.05, impl="native")
        assert torch.equal(before.output, again.output) and torch.equal(before.certificate.tv, again.certificate.tv)
        index.append(key[:, :, :5].clone(), value[:, :, :5].clone())
        torch.set_num_threads(1)  # torch's own copies, when the buffers grow
        index.append(key, value)
        index.attend(query, epsilon=0.05, impl="native")
    except RuntimeError as error:
        os._exit(7 if sys.argv[1] == "changing" and "forked while a thread was changing" in str(error) else 1)
    os._exit(0 if len(index) == 6005 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("meanwhile", "code"), [("nothing", 0), ("asking", 0), ("changing", 7)])
def test_a_forked_child_answers_as_its_parent_does(meanwhile, code):
    """It hung in libgomp, whose threads are not in the child. Questions in flight are gone; a change is half done."""
    shown = run(FORK, meanwhile)
    assert (shown.stdout.strip(), shown.stderr, shown.returncode) == (str(code), "", 0)


EXIT = """
import sys, threading, time, torch
from tailbound import KVIndex
torch.set_num_threads(int(sys.argv[1]))
index = KVIndex(torch.randn(1, 2, 20_000, 64), torch.randn(1, 2, 20_000, 64))
query, going = torch.randn(1, 8, 16, 64), threading.Event()
def ask():
    for _ in range(3 if sys.argv[2] == "joined" else 1_000_000):
        index.attend(query, epsilon=0.05, impl="native")
        going.set()
        if sys.argv[2] == "between":  # no call is in flight when the end begins, and torch gives up the GIL too
            for _ in range(500):
                torch.ones(1000).add_(1)
for _ in range(2):
    threading.Thread(target=ask, daemon=sys.argv[2] != "joined").start()
going.wait()
"""


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("kind", ["daemon", "between", "joined"])
def test_the_interpreter_ends_in_peace_while_threads_ask(threads, kind):
    """A daemon thread that wanted the GIL back at the end was ended inside C++, and the process aborted."""
    shown = run(EXIT, threads, kind)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_the_interpreter_ends_in_peace_with_a_live_index_in_a_cycle():
    shown = run(
        "import torch, tailbound\nindex = tailbound.KVIndex(torch.randn(1, 1, 300, 8), torch.randn(1, 1, 300, 8))\n"
        "index.itself = index\nindex.attend(torch.randn(1, 1, 1, 8), epsilon=0.1)\n"
    )
    assert (shown.returncode, shown.stderr) == (0, "")


LEAK = """
import gc, sys, torch
from tailbound import KVIndex
torch.set_num_threads(1)
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
key, query = torch.randn(1, 1, 300, 8), torch.randn(1, 2, 1, 8)
index, one, kept = KVIndex(key, key), key[:, :, :1].clone(), []
def steps(n):
    for _ in range(n):
        answer = index.attend(query, epsilon=0.1, impl="native")
        index.append(one, one)
        index.crop(300)
        if sys.argv[1] == "control":
            kept.append(answer.output)
steps(5_000)
before = resident()
steps(int(sys.argv[2]))
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_hundred_thousand_steps_leak_nothing():
    shown = run(LEAK, "plain", "100000")
    assert shown.stderr == ""
    assert int(shown.stdout) < 2**20, shown.stdout  # 10 bytes a step
    held = run(LEAK, "control", "10000")
    assert int(held.stdout) > 2**20, held.stdout  # answers that are kept are seen, in a tenth of the steps


def test_an_index_goes_when_its_last_name_does():
    index, query = filled(keys=40)
    index.attend(query, epsilon=EPSILON)
    store = index._store
    gone = []
    weakref.finalize(store, gone.append, 1)
    del index, store
    gc.collect()
    assert gone == [1]
