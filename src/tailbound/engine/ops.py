"""`torch.ops.tailbound.attend`: an index's attention as one operator, for `torch.compile` and `torch.export`.

The number of keys crosses as the tensor `span`, so that a compiled graph stays valid while an index is appended to;
growing changes the shapes of the buffers once, and makes them dynamic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.engine import native as native_room
from tailbound.engine.asking import Question, ask
from tailbound.engine.store import Store
from tailbound.result import Attention, Certificate, Stats

_Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("tailbound::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes: Tensor,
    marks: Tensor,
    center: Tensor,
    value_center: Tensor,
    bounds: Tensor,
    span: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    scale: float | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    softcap: float | None,
    sink: Tensor | None,
    native: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, tv, output_error, kept, status and counts; the buffers are those of `engine.store.Store`."""
    start, stop = span.tolist()
    store = Store(key, value, codes, marks, center, value_center, bounds, span, start, stop)
    impl = None if native is None else "native" if native else "torch"
    question = Question(
        query, epsilon if epsilons is None else epsilons, scale, attn_mask, is_causal, softcap, sink, impl
    )
    found = ask(question, store, None, False)
    # Copies: the parts of a certificate share a buffer, and an operator's results must not.
    tv, error, kept, status = (part.clone() for part in found.certificate)
    return found.output, tv, error, kept, status, torch.tensor(found.stats.counts)


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> _Parts:
    rows = query.shape[:3]
    return (
        query.new_empty(*rows, value.shape[3]),
        query.new_empty(rows, dtype=torch.float64),
        query.new_empty(rows, dtype=torch.float64),
        query.new_empty(rows, dtype=torch.int32),
        query.new_empty(rows, dtype=torch.uint8),
        query.new_empty(5, dtype=torch.int64, device="cpu"),
    )


def traced(question: Question, store: Store, return_kept: bool) -> Attention:
    """`ask` inside a graph.

    Raises:
        ValueError: for what a graph cannot hold.
    """
    if return_kept:
        raise ValueError("return_kept=True has a shape that depends on data; ask for it outside torch.compile")
    if question.query.requires_grad and torch.is_grad_enabled():
        raise ValueError("the gradients of an index's attention are not implemented inside torch.compile; detach query")
    impls = {None: None, "native": True, "torch": False}
    if question.impl not in impls:
        raise ValueError(f"impl={question.impl!r} is unknown; an index has 'torch' and 'native', or None for the best")
    sink = question.sink
    if sink is not None and not isinstance(sink, Tensor):
        sink = torch.tensor(float(sink), dtype=torch.float64, device=question.query.device)
    output, tv, error, kept, status, counts = attend(
        question.query,
        *store.tensors(),
        0.0 if isinstance(question.epsilon, Tensor) else float(question.epsilon),
        question.epsilon if isinstance(question.epsilon, Tensor) else None,
        None if question.scale is None else float(question.scale),
        question.attn_mask,
        question.is_causal,
        None if question.softcap is None else float(question.softcap),
        sink,
        impls[question.impl],
    )
    return Attention(
        output, Certificate(tv, error, kept, status), Stats(question.impl or _best(question, store), counts), None
    )


def _best(question: Question, store: Store) -> str:
    """What `ask` picks for a question without gradients."""
    mask = question.attn_mask
    biased = mask is not None and mask.dtype is not torch.bool
    return "torch" if biased or native_room.why_not_store(store.key.device, store.width) else "native"
