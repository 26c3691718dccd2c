"""An index through its life: whatever happened to it, it holds what a plain tensor would hold, and its answers keep the
law by every implementation."""

import copy
import pickle

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asking import INDEX_DTYPES, INDEXES, KERNELS, LEVELS, level_of
from indexes import ask_and_check, pair
from tailbound import KVIndex

COUNTS = st.sampled_from([0, 1, 1, 2, 7, 15, 16, 17, 40, 64, 150, 200, 240, 255, 256, 257, 300])
MOST = 1000
"""Keys that the machine goes on adding to: more than four pages, and several growths."""


class Life(RuleBasedStateMachine):
    """Against tensors that are concatenated, sliced and selected from."""

    @initialize(
        heads=st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 1), (2, 2, 3)]),
        widths=st.sampled_from([(1, 2), (3, 1), (16, 16), (18, 5)]),
        dtype=st.sampled_from(INDEX_DTYPES),
        level=st.sampled_from(LEVELS),
        keys=COUNTS,
        seed=st.integers(0, 2**31),
    )
    def build(self, heads, widths, dtype, level, keys, seed):
        self.gen = torch.Generator().manual_seed(seed)
        batch, kv_heads, self.group = heads
        self.key, self.value = pair(self.gen, batch, kv_heads, keys, *widths, dtype)
        self.building = level_of(f"index/{level}")  # codes are written by this level
        self.building.__enter__()
        self.index = KVIndex(self.key, self.value)
        self.left = []  # copies, with what they must hold for ever

    def more(self, keys, offset=0.0):
        batch, kv_heads, _, width = self.key.shape
        return pair(self.gen, batch, kv_heads, keys, width, self.value.shape[3], self.key.dtype, offset)

    def add(self, key, value):
        if self.key.shape[2] + key.shape[2] > MOST:
            return
        self.index.append(key, value)
        self.key, self.value = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)

    @rule(keys=COUNTS)
    def append(self, keys):
        self.add(*self.more(keys))

    @rule(keys=COUNTS, offset=st.sampled_from([-100.0, 8.0, 50.0]))
    def append_far_away(self, keys, offset):
        self.add(*self.more(keys, offset))

    @rule(keys=st.integers(1, 20), what=st.sampled_from([torch.nan, torch.inf, -torch.inf]), values=st.booleans())
    def append_something_not_finite(self, keys, what, values):
        key, value = self.more(keys)
        (value if values else key)[0, -1, keys // 2, -1] = what
        self.add(key, value)

    @rule(share=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    def crop(self, share):
        length = int(share * len(self.index))
        self.index.crop(length)
        self.key, self.value = self.key[:, :, :length], self.value[:, :, :length]

    @rule(share=st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    def drop_front(self, share):
        count = int(share * len(self.index))
        self.index.drop_front(count)
        self.key, self.value = self.key[:, :, count:], self.value[:, :, count:]

    @rule(data=st.data())
    def reorder(self, data):
        batch = self.key.shape[0]
        order = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3)))
        self.index.reorder(order)
        self.key, self.value = self.key[order], self.value[order]

    @precondition(lambda self: len(self.left) < 2)
    @rule(how=st.sampled_from([copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))]), swap=st.booleans())
    def leave_a_copy(self, how, swap):
        other = how(self.index)
        if swap:
            self.index, other = other, self.index
        self.left.append((other, self.key, self.value))

    @rule(
        impl=st.sampled_from(INDEXES),
        queries=st.integers(1, 4),
        epsilon=st.sampled_from([0.0, 1e-3, 0.05, 0.3, 0.9]),
        causal=st.booleans(),
        seen=st.sampled_from([None, None, 0.0, 0.1, 0.7]),
        softcap=st.sampled_from([None, None, 5.0]),
        sink=st.booleans(),
        scale=st.sampled_from([None, None, -1.0, 3.0]),
    )
    def attend(self, impl, queries, epsilon, causal, seen, softcap, sink, scale):
        batch, kv_heads, keys, width = self.key.shape
        rows = (batch, kv_heads * self.group, queries)
        query = (2 * torch.randn(*rows, width, generator=self.gen)).to(self.key.dtype)
        options = {"is_causal": causal, "softcap": softcap, "scale": scale}
        if seen is not None:
            options["attn_mask"] = torch.rand(*rows, keys, generator=self.gen) < seen
        if sink:
            options["sink"] = 3 * torch.randn(rows[1], generator=self.gen)
        ask_and_check(self.index, query, self.key, self.value, impl, epsilon=epsilon, **options)

    @invariant()
    def it_holds_what_a_tensor_would_hold(self):
        if hasattr(self, "index"):
            self.check_held(self.index, self.key, self.value)

    @staticmethod
    def check_held(index, key, value):
        assert len(index) == key.shape[2]
        assert index.shape == (*key.shape, value.shape[3])
        # Bits: NaN is not equal to itself.
        bits = torch.int32 if index.dtype is torch.float32 else torch.int16
        for held, model in ((index.key, key), (index.value, value)):
            assert torch.equal(held.contiguous().view(bits), model.contiguous().view(bits))

    def teardown(self):
        if not hasattr(self, "index"):
            return
        self.building.__exit__(None, None, None)
        for index, key, value in self.left:
            self.check_held(index, key, value)
            if key.shape[2]:
                query = torch.randn(key.shape[0], key.shape[1] * self.group, 1, key.shape[3], generator=self.gen)
                ask_and_check(index, query.to(key.dtype), key, value, KERNELS[-1], epsilon=0.1)


Life.TestCase.settings = settings(max_examples=200 if settings().max_examples < 100 else 2000, stateful_step_count=40)
test_an_index_lives_like_a_tensor_and_keeps_the_law = Life.TestCase


@pytest.mark.parametrize("impl", INDEXES)
def test_a_copy_and_its_original_do_not_share_anything(impl):
    torch.manual_seed(0)
    key, value, query = torch.randn(1, 1, 20, 4), torch.randn(1, 1, 20, 4), torch.randn(1, 1, 1, 4)
    index = KVIndex(key, value)
    ask_and_check(index, query, key, value, impl, epsilon=0.1)
    other = copy.deepcopy(index)
    other.crop(10)
    other.append(100 + key[:, :, 10:], value[:, :, 10:])
    ask_and_check(index, query, key, value, impl, epsilon=0.1)
    changed = torch.cat([key[:, :, :10], 100 + key[:, :, 10:]], 2)
    ask_and_check(other, query, changed, value, impl, epsilon=0.1)
