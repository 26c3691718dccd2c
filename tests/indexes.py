"""What tests of an index share: tensors to fill it with, and the law that every answer must keep."""

import numpy as np
import torch

import oracles
from asking import ask_index
from tailbound import Status


def pair(gen, batch, kv_heads, keys, width, value_width, dtype, offset=0.0):
    """Keys and values; `offset` moves all keys, as an outlier channel does."""
    key = torch.randn(batch, kv_heads, keys, width, generator=gen) + offset
    return key.to(dtype), torch.randn(batch, kv_heads, keys, value_width, generator=gen).to(dtype)


def check_answer(answer, query, key, value, epsilon, **options):
    """tv and output_error are not below the truth, tv <= epsilon, and each status says what happened.

    `options` are those of `KVIndex.attend`, with a bool mask; `answer` was asked for `kept`.
    """
    if (mask := options.pop("attn_mask", None)) is not None:
        options["visible"] = mask
    truth = oracles.fast(query, key, value, answer.kept, **options)
    tv, error, kept, status = (part.numpy() for part in answer.certificate)
    certified = truth.finite & ~truth.empty
    away = oracles.fast_distance(answer.output, truth.output)
    assert answer.kept.shape == (*query.shape[:3], key.shape[2])
    assert (status[truth.empty] == Status.EMPTY).all()
    assert (status[~truth.finite & ~truth.empty] == Status.NONFINITE).all()
    assert np.isin(status[certified], (Status.CERTIFIED, Status.DENSE)).all()
    assert (tv >= truth.tail - truth.tail_error)[certified].all(), f"tv {tv} below the truth {truth.tail}"
    assert (error >= away - truth.output_error)[certified].all(), f"output_error {error} below the truth {away}"
    assert (tv <= epsilon)[certified].all()
    assert (tv[truth.empty] == 0).all()
    assert not answer.output.float().numpy()[truth.empty].any()
    assert (kept == answer.kept.sum(-1).numpy()).all()
    assert ((tv == 0) == (status == Status.DENSE))[certified].all()


def ask_and_check(index, query, key, value, impl, *, epsilon, **options):
    """Ask, hold the answer to the law, and give it back."""
    answer = ask_index(index, query, impl, epsilon=epsilon, return_kept=True, **options)
    check_answer(answer, query, key, value, epsilon, **options)
    return answer


def same_answer(a, b):
    """The same bits in everything but costs."""
    assert torch.equal(a.output, b.output)
    for x, y in zip(a.certificate, b.certificate, strict=True):
        assert torch.equal(x, y)
