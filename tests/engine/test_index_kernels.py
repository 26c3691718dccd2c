"""Kernels of every level against the specification in torch: the same codes, and answers as good, for every shape."""

import os
from functools import partial

import mpmath
import pytest
import torch

import oracles
from asking import INDEX_DTYPES, KERNELS, LEVELS, ask_index, level_of
from indexes import ask_and_check, pair, same_answer
from tailbound import KVIndex, Status
from tailbound.bounds import Sketch, hadamard
from tailbound.engine import coding, native
from tailbound.engine.store import Store

FLOAT32_SUMS = 2.0 * (2.0**-16 + 288 * 2.0**-24)
"""What kernels grant to float32 weights and to the order of their sums (csrc/kernels.h), on two sides."""

APPENDS = (3, 70, 1, 200, 1, 16, 300, 0, 40)


def fresh(key, value, room):
    """A store whose unused bytes are zero, so that whole buffers can be compared."""
    store = Store.empty(key, value, room)
    for tensor in store.tensors():
        tensor.zero_()
    return store


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 8, 16, 17, 18, 64, 80, 130])
def test_kernels_write_the_codes_of_the_specification(level, dtype, width, monkeypatch):
    """Codes, steps and centres bit for bit, where they lie in memory too; residual and extent, whose norms add up in
    another order, within one bfloat16 step."""
    monkeypatch.setenv("TAILBOUND_ISA", level)
    gen = torch.Generator().manual_seed(width)
    key, value = pair(gen, 2, 2, sum(APPENDS), width, 3, torch.float32)
    # Multiples of 2^-10: their sums are exact in any order, and so are the centres.
    key = ((key * 1024).round() / 1024).to(dtype)
    key[1, :, 300:] += 40.0
    key[0, 0, 5, 0], key[0, 1, 290], key[1, 1, 33] = torch.nan, 0.0, key[1, 1, 32]
    value[1, 0, 70, 1] = torch.inf
    value = value.to(dtype)
    torch_store, kernel_store = (fresh(key, value, key.shape[2]) for _ in range(2))
    handle, first = native.Handle(kernel_store), 0
    for count in APPENDS:
        part = slice(first, first + count)
        if count:
            coding.write(torch_store, key[:, :, part], value[:, :, part])
            handle.append(kernel_store, key[:, :, part], value[:, :, part])
        first += count
    a, b = torch_store, kernel_store
    assert (a.start, a.stop) == (b.start, b.stop) == (0, first)
    assert torch.equal(a.key.view(torch.uint8), b.key.view(torch.uint8))
    assert torch.equal(a.value.view(torch.uint8), b.value.view(torch.uint8))
    assert torch.equal(a.center, b.center)
    assert torch.equal(a.codes, b.codes)
    bits_a, bits_b = (store.marks.view(torch.int16).to(torch.int32) for store in (a, b))
    assert torch.equal(bits_a[:, :, :, 0], bits_b[:, :, :, 0])  # steps
    assert torch.equal(a.marks.isnan(), b.marks.isnan())
    assert ((bits_a - bits_b).abs() <= 1)[~a.marks.isnan()].all()
    torch.testing.assert_close(a.value_center, b.value_center, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.bounds, b.bounds, rtol=1e-12, atol=0)


@pytest.mark.parametrize("level", ["torch", *LEVELS])
def test_an_index_emptied_from_the_front_codes_as_a_new_one(level, monkeypatch):
    """Its next page took the centre of one whose keys were gone, if the buffers had not grown: bits told of room."""
    monkeypatch.setenv("TAILBOUND_ISA", "scalar" if level == "torch" else level)
    gen = torch.Generator().manual_seed(5)
    key, value = pair(gen, 1, 2, 300, 8, 3, torch.float32)
    gone = pair(gen, 1, 2, 256, 8, 3, torch.float32, offset=9.0)
    emptied, new = (fresh(key, value, 600) for _ in range(2))
    for store in (emptied, new):
        write = partial(coding.write, store) if level == "torch" else partial(native.Handle(store).append, store)
        if store is emptied:
            write(*gone)
            store.place(256, 256)
        for part in (slice(0, 1), slice(1, 300)):
            write(key[:, :, part], value[:, :, part])
    assert torch.equal(emptied.center[:, :, 1:3], new.center[:, :, :2])
    for head in (0, 1):
        for a, b in zip(emptied.coded(0, head)[0], new.coded(0, head)[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 8, 18])
def test_the_marks_that_kernels_write_are_never_below_what_they_stand_for(level, dtype, width, monkeypatch):
    """To 60 digits, from what lies in memory: `residual >= |k - c - h H z|` and `extent >= h |z|`."""
    monkeypatch.setenv("TAILBOUND_ISA", level)
    gen = torch.Generator().manual_seed(width)
    key, value = pair(gen, 1, 1, 60, width, 1, dtype)
    store = KVIndex(key, value)._store
    coded, page = store.coded(0, 0)
    turned = coded.codes.double() @ hadamard.rotation(width)  # exact, as is the product with the step
    moved = turned * coded.step.double()[:, None]
    assert int(coded.codes.min()) >= -127
    for i in range(len(page)):
        away = zip(key[0, 0, i], store.center[0, 0, page[i]], moved[i], strict=True)
        missing = mpmath.norm([oracles.exact(k) - oracles.exact(c) - oracles.exact(m) for k, c, m in away])
        assert oracles.exact(coded.residual[i]) >= missing
        assert oracles.exact(coded.extent[i]) >= oracles.exact(coded.step[i]) * mpmath.norm(coded.codes[i].tolist())


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"softcap": 8.0}, {"sink": 2.0}, {"scale": -0.4}])
def test_kernels_answer_like_the_specification(impl, dtype, options):
    """Outputs differ by what the two certificates allow. Kernels allot `epsilon` times the lower ends of all keys, the
    specification `epsilon / (1 - epsilon)` times those of the head: at large epsilon they keep a few keys more."""
    gen = torch.Generator().manual_seed(1)
    key, value = pair(gen, 1, 2, 700, 32, 24, dtype)
    query = (2 * torch.randn(1, 4, 2, 32, generator=gen)).to(dtype)
    index = KVIndex(key, value)
    for epsilon in (0.0, 0.01, 0.3):
        a = ask_index(index, query, impl, epsilon=epsilon, return_kept=True, **options)
        b = ask_index(index, query, "index/torch", epsilon=epsilon, return_kept=True, **options)
        away = (a.output.double() - b.output.double()).norm(dim=-1)
        assert (away <= a.certificate.output_error + b.certificate.output_error).all()
        assert (a.certificate.kept <= (1 + 0.5 * epsilon) * b.certificate.kept + 2).all()
        assert a.stats.keys_visible == b.stats.keys_visible
        same = (a.kept == b.kept).all(-1)
        torch.testing.assert_close(a.certificate.tv[same], b.certificate.tv[same], rtol=0.05, atol=1e-12)
        if epsilon == 0.0:
            assert (a.certificate.tv == 0).all()
            assert (a.certificate.status == Status.DENSE).all()


@pytest.mark.parametrize("impl", ["index/torch", *KERNELS])
@pytest.mark.parametrize("width", [3, 16, 128])
def test_queries_along_what_the_codes_of_a_key_miss(impl, width):
    """Where Cauchy-Schwarz is an equality, nothing but the residual keeps an upper end above its logit, one nat higher.

    Logits are far apart there, so that the heaviest key left out is most of the mass left out.
    """
    gen = torch.Generator().manual_seed(width)
    for scale in (1.0, -8.0):
        key, value = pair(gen, 1, 1, 40, width, 2, torch.float32)
        sketch = Sketch(key[0, 0])
        rebuilt = (
            sketch.center.double()[0]
            + hadamard.rotate(sketch.coded.codes.double()) * sketch.coded.step.double()[:, None]
        )
        away = key[0, 0] - rebuilt
        query = (away / away.square().sum(-1, keepdim=True).clamp_min(1e-12) / scale).float()[None, None]
        index = KVIndex(key, value)
        for epsilon in (0.05, 0.3, 0.6):
            ask_and_check(index, query, key, value, impl, epsilon=epsilon, scale=scale)


# Logits of 4,096 keys, by position: where the largest lie decides what weights refer to, and whether a sample
# of them tells where to cut.
PROFILES = {
    "rising": lambda at, gen: at / 100,
    "falling": lambda at, gen: -at / 100,
    "steps": lambda at, gen: 30 * torch.floor(at / 1024),
    "peaks": lambda at, gen: 12.0 * (torch.rand(len(at), generator=gen) < 0.001),
    "one": lambda at, gen: 9.0 * (at == 1717),
    "flat": lambda at, gen: 0.0 * at,
    "low": lambda at, gen: 0.0 * at - 2000.0,
}


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_cut_is_as_good_wherever_the_weight_lies(impl, profile, threads):
    gen = torch.Generator().manual_seed(7)
    at = torch.arange(4096.0)
    key = 0.3 * torch.randn(1, 1, 4096, 8, generator=gen)
    key[0, 0, :, 0] = PROFILES[profile](at, gen) + torch.randn(4096, generator=gen)
    value = torch.randn(1, 1, 4096, 4, generator=gen)
    query = torch.eye(8)[:1].expand(1, 2, 1, 8).clone()
    query[0, 1] += 0.1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for epsilon in (0.001, 0.05, 0.4):
            index = KVIndex(key, value)
            found = ask_and_check(index, query, key, value, impl, epsilon=epsilon, scale=1.0)
            right = ask_index(index, query, "index/torch", epsilon=epsilon, scale=1.0)
            kept, fewest = found.certificate.kept, right.certificate.kept
            assert (kept <= (1 + 0.5 * epsilon) * fewest + 2).all(), (kept, fewest)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("impl", KERNELS)
def test_every_number_of_keys_and_every_width(impl):
    gen = torch.Generator().manual_seed(2)
    for n in range(1, 41):
        dtype, other = INDEX_DTYPES[n % 3], 1 + (7 * n) % 40
        for keys, width in ((n, other), (33, n)):
            key, value = pair(gen, 1, 1, keys, width, other, dtype)
            query = (3 * torch.randn(1, 2, 1, width, generator=gen)).to(dtype)
            index = KVIndex(key, value)
            ask_and_check(index, query, key, value, impl, epsilon=0.1)
            ask_and_check(index, query, key, value, impl, epsilon=0.1, attn_mask=torch.rand(keys, generator=gen) < 0.6)
            front = keys // 3  # a window that begins inside a block
            index.drop_front(front)
            ask_and_check(index, query, key[:, :, front:], value[:, :, front:], impl, epsilon=0.1, is_causal=True)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(("group", "queries"), [(1, 17), (3, 6), (5, 16), (1, 60), (17, 1)])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_rows_beyond_one_tile_are_answered_as_if_asked_alone(impl, group, queries, options):
    gen = torch.Generator().manual_seed(3)
    key, value = pair(gen, 1, 2, 300, 16, 8, torch.float32)
    query = 2 * torch.randn(1, 2 * group, queries, 16, generator=gen)
    index = KVIndex(key, value)
    many = ask_and_check(index, query, key, value, impl, epsilon=0.1, **options)
    assert many.stats.keys_visible == 2 * 300
    assert many.stats.keys_read <= 2 * 300
    for t in range(queries):
        shorter = (
            KVIndex(key[:, :, : 300 - queries + t + 1], value[:, :, : 300 - queries + t + 1]) if options else index
        )
        one = ask_index(shorter, query[:, :, t : t + 1], impl, epsilon=0.1, return_kept=True)
        row = slice(t, t + 1)
        away = (many.output[:, :, row] - one.output).norm(dim=-1)
        assert (away <= many.certificate.output_error[:, :, row] + one.certificate.output_error).all()
        if not options:
            assert torch.equal(many.kept[:, :, row], one.kept)
            torch.testing.assert_close(many.certificate.tv[:, :, row], one.certificate.tv, rtol=FLOAT32_SUMS, atol=0)


@pytest.mark.parametrize("impl", KERNELS)
def test_causal_rows_that_see_a_page_in_part_and_none_of_the_last(impl):
    gen = torch.Generator().manual_seed(8)
    key, value = pair(gen, 1, 1, 600, 8, 2, torch.float32)
    query = 2 * torch.randn(1, 1, 200, 8, generator=gen)
    ask_and_check(KVIndex(key, value), query, key, value, impl, epsilon=0.1, is_causal=True)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(("pairs", "keys"), [(1, 40), (1, 1500), (3, 700)])
def test_threads_change_no_promise_and_equal_calls_give_equal_bits(impl, pairs, keys):
    gen = torch.Generator().manual_seed(4)
    key, value = pair(gen, 1, pairs, keys, 16, 16, torch.bfloat16)
    query = (2 * torch.randn(1, 2 * pairs, 2, 16, generator=gen)).bfloat16()
    answers, before = {}, torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            index = KVIndex(key, value)
            for epsilon in (0.0, 0.1):
                answer = ask_and_check(index, query, key, value, impl, epsilon=epsilon)
                assert answer.stats.threads == threads
                for _ in range(3):
                    same_answer(answer, ask_index(index, query, impl, epsilon=epsilon))
                answers[threads, epsilon] = answer
    finally:
        torch.set_num_threads(before)
    for (_, epsilon), answer in answers.items():
        one = answers[1, epsilon]
        same = (one.kept == answer.kept).all(-1)  # a sum in another order may move the cut by a key
        assert same.float().mean() > 0.5
        torch.testing.assert_close(one.certificate.tv[same], answer.certificate.tv[same], rtol=FLOAT32_SUMS, atol=0)
        torch.testing.assert_close(
            one.certificate.output_error[same], answer.certificate.output_error[same], rtol=0.05, atol=0
        )


@pytest.mark.parametrize("level", LEVELS)
def test_an_index_written_at_one_level_is_read_at_every_other(level):
    gen = torch.Generator().manual_seed(5)
    key, value = pair(gen, 1, 1, 290, 18, 4, torch.float16)
    query = torch.randn(1, 2, 1, 18, generator=gen).half()
    with level_of(f"index/{level}"):
        assert os.environ["TAILBOUND_ISA"] == native.active_level() == level
        index = KVIndex(key[:, :, :280], value[:, :, :280])
        index.append(key[:, :, 280:], value[:, :, 280:])
    for impl in ("index/torch", *KERNELS):
        ask_and_check(index, query, key, value, impl, epsilon=0.1)
