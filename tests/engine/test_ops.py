"""An index inside a graph: the operator keeps torch's contract, and appending does not recompile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from indexes import pair, same_answer
from tailbound import Attention, Certificate, KVIndex, Stats


def made(keys=300, dtype=torch.float32, batch=1, kv_heads=2, width=8, value_width=6):
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, batch, kv_heads, keys, width, value_width, dtype)
    return KVIndex(key, value), torch.randn(batch, 2 * kv_heads, 3, width, generator=gen).to(dtype)


ARGUMENTS = {
    "plain": (0.05, None, None, None, False, None, None, None),
    "heads": (0.0, torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64), None, None, False, None, None, None),
    "dense": (0.0, None, None, None, False, None, None, None),
    "causal": (0.05, None, 0.3, None, True, None, None, None),
    "mask": (
        0.05,
        None,
        None,
        torch.rand(3, 300, generator=torch.Generator().manual_seed(1)) < 0.7,
        False,
        None,
        None,
        None,
    ),
    "bias": (0.05, None, None, torch.zeros(1, 1, 3, 300), False, None, None, None),
    "cap and sink": (0.05, None, None, None, True, 4.0, torch.zeros(4), None),
    "native": (0.05, None, None, None, False, None, None, True),
    "torch": (0.05, None, None, None, False, None, None, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_operator_keeps_the_contract_of_torch(arguments, dtype):
    index, query = made(dtype=dtype, batch=2 if arguments == "plain" else 1)
    torch.library.opcheck(torch.ops.tailbound.attend.default, (query, *index._store.tensors(), *ARGUMENTS[arguments]))


@pytest.mark.parametrize("shape", [(0, 2, 300), (1, 2, 0)])
def test_the_operator_keeps_the_contract_of_torch_without_keys_or_batch_entries(shape):
    index, query = made(batch=shape[0], kv_heads=shape[1], keys=shape[2])
    torch.library.opcheck(torch.ops.tailbound.attend.default, (query, *index._store.tensors(), *ARGUMENTS["plain"]))


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def steps(call, count=20, keys=250, dtype=torch.float32):
    """Ask in a graph and outside it while keys come, one at a time; the buffers hold 256 and then grow."""
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 2, keys + count, 8, 6, dtype)
    index = KVIndex(key[:, :, :keys], value[:, :, :keys])
    function, counter = compiled(call)
    capacities = set()
    for i in range(keys, keys + count):
        query = torch.randn(1, 4, 1, 8, generator=gen).to(dtype)
        same_answer(function(index, query), call(index, query))
        index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        capacities.add(index._store.capacity)
    assert len(capacities) == 2
    return counter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "softcap": 3.0},
        {"sink": 1.0},
        {"epsilon": torch.tensor([0.0, 0.1, 0.2, 0.3])},
        {"impl": "torch"},
        {"impl": "native", "scale": 0.5},
    ],
)
def test_twenty_appends_and_a_growth_compile_at_most_twice(options):
    torch._dynamo.utils.counters.clear()
    counter = steps(lambda index, query: index.attend(query, **{"epsilon": 0.05, **options}))
    assert counter.frame_count <= 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counter.frame_count
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_rest_of_a_graph_reads_answers():
    def call(index, query):
        answer = index.attend(2 * query, epsilon=0.05)
        tv, *others = answer.certificate
        certificate = Certificate(tv * 2, *others)
        return Attention(answer.output.relu(), certificate, answer.stats, None)

    assert steps(call, dtype=torch.bfloat16).frame_count <= 2


def test_other_changes_of_an_index_are_seen_by_a_graph():
    index, query = made(keys=500)
    function, counter = compiled(lambda index, query: index.attend(query, epsilon=0.05))
    changes = (
        lambda: index.crop(400),
        lambda: index.drop_front(70),
        lambda: index.append(index.key[:, :, :9].clone(), index.value[:, :, :9].clone()),
        lambda: index.reorder(torch.tensor([0])),
    )
    for change in changes:
        same_answer(function(index, query), index.attend(query, epsilon=0.05))
        change()
        same_answer(function(index, query), index.attend(query, epsilon=0.05))
    assert counter.frame_count <= 2


def test_a_graph_says_what_it_cannot_hold():
    index, query = made()
    for options, words in (({"return_kept": True}, "outside torch.compile"), ({"impl": "fast"}, "is unknown")):
        function, _ = compiled(lambda index, query, options=options: index.attend(query, epsilon=0.05, **options))
        with pytest.raises(Exception, match=words):
            function(index, query)
    function, _ = compiled(lambda index, query: index.attend(query, epsilon=0.05))
    with pytest.raises(Exception, match="detach query"):
        function(index, query.clone().requires_grad_())
    with pytest.raises(ValueError, match="budget"):
        compiled(lambda index, query: index.attend(query, epsilon=1.5))[0](index, query)


def test_the_default_backend_gives_the_same_bits():
    index, query = made(dtype=torch.bfloat16)
    torch._dynamo.reset()
    call = torch.compile(lambda query: index.attend(query, epsilon=0.05), fullgraph=True)
    same_answer(call(query), index.attend(query, epsilon=0.05))


def test_stats_inside_a_graph_say_what_computed():
    index, query = made()
    function, _ = compiled(lambda index, query: index.attend(query, epsilon=0.05))
    found, eager = function(index, query), index.attend(query, epsilon=0.05)
    assert isinstance(found.stats, Stats)
    assert isinstance(found.certificate, Certificate)
    assert tuple(found.stats.counts.tolist()) == eager.stats.counts
    assert (found.stats.impl, found.stats.isa) == (eager.stats.impl, eager.stats.isa)
