"""`tailbound.KVIndex`: keys and values with their sketch, built once, appended to in place, asked at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tailbound.engine import coding, native, ops
from tailbound.engine.asking import Question, ask, check_stored, fits
from tailbound.engine.store import Store
from tailbound.result import Attention


class KVIndex:
    """Keys and values that certified attention can read sparsely: each key has an int8 sketch with a stored residual.

    The index owns copies, and grows in place by a quarter at a time. Beside a key and its value it holds at most D + 8
    bytes a KV head. Several threads may ask it at once; a change that meets a question or another change is refused
    (docs/hardening.md).

    >>> key, value = torch.randn(1, 2, 500, 16), torch.randn(1, 2, 500, 16)
    >>> index = KVIndex(key, value)
    >>> answer = index.attend(torch.randn(1, 4, 1, 16), epsilon=0.05)
    >>> len(index), bool((answer.certificate.tv <= 0.05).all())
    (500, True)
    """

    def __init__(self, key: Float[Tensor, "B Hkv Tk D"], value: Float[Tensor, "B Hkv Tk Dv"], *, room: int = 0) -> None:
        """Build from a prefill; Tk may be 0.

        Args:
            key: (B, Hkv, Tk, D), float16, bfloat16 or float32.
            value: (B, Hkv, Tk, Dv), same dtype and device.
            room: how many keys shall fit before the buffers are replaced; at least Tk do.

        Raises:
            ValueError: shapes or devices that do not fit, or tensors that require grad.
            TypeError: dtypes that do not fit.
        """
        check_stored(key, value)
        self._store = Store.empty(key, value, max(room, key.shape[2]))
        self._handle: native.Handle | None = None
        self._write(key, value)

    def __len__(self) -> int:
        """Keys held for each batch entry and KV head."""
        return self._store.length

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, sketches, and room to grow."""
        return self._store.nbytes()

    @property
    def dtype(self) -> torch.dtype:
        """Of keys, values and queries."""
        return self._store.key.dtype

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, Hkv, Tk, D, Dv)."""
        store = self._store
        return store.key.shape[0], store.key.shape[1], store.length, store.width, store.value.shape[3]

    @property
    def key(self) -> Tensor:
        """The keys held, (B, Hkv, Tk, D): a view that is valid until the index changes. Do not write to it."""
        return self._store.keys()

    @property
    def value(self) -> Tensor:
        """The values held, (B, Hkv, Tk, Dv): a view that is valid until the index changes. Do not write to it."""
        return self._store.values()

    @property
    def versions(self) -> tuple[int, int]:
        """Version counters of the memory of keys and values: they move if anyone writes into `key` or `value`."""
        return self._store.key._version, self._store.value._version

    def append(self, key: Float[Tensor, "B Hkv T D"], value: Float[Tensor, "B Hkv T Dv"]) -> None:
        """Add keys and values after those held, in place.

        Keys with NaN or infinity, in themselves or in their value, are flagged: rows that see them are NONFINITE.

        Args:
            key: as for the constructor, with the shapes, dtype and device of the index; T may be 0.
            value: likewise.

        Raises:
            ValueError, TypeError: what does not fit.
            RuntimeError: another thread is asking or changing the index; so with every change.
        """
        if not fits(key, value, self._store):
            check_stored(key, value, self._store)
        self._change("append", lambda: self._write(key, value))

    def crop(self, length: int) -> None:
        """Keep the first `length` keys.

        Raises:
            ValueError: length is negative or more than are held.
        """

        def work() -> None:
            self._check_count("length", length)
            self._store.place(self._store.start, self._store.start + length)

        self._change("crop", work)

    def drop_front(self, count: int) -> None:
        """Forget the first `count` keys, as a sliding window does; their room is used again when the index is full.

        Raises:
            ValueError: count is negative or more than are held.
        """

        def work() -> None:
            self._check_count("count", count)
            self._store.place(self._store.start + count, self._store.stop)

        self._change("drop_front", work)

    def reorder(self, batch_indices: Tensor) -> None:
        """Make batch entry i what entry `batch_indices[i]` is now; entries may repeat or be left out.

        Args:
            batch_indices: int32 or int64 (new batch,).

        Raises:
            ValueError, TypeError: not one-dimensional integers in range.
        """
        if not isinstance(batch_indices, Tensor) or batch_indices.dtype not in (torch.int32, torch.int64):
            kind = getattr(batch_indices, "dtype", type(batch_indices).__name__)
            raise TypeError(f"batch_indices is {kind}; pass an int32 or int64 torch.Tensor")
        batch = self._store.key.shape[0]
        if batch_indices.ndim != 1 or bool(((batch_indices < 0) | (batch_indices >= batch)).any()):
            raise ValueError(
                f"batch_indices has shape {tuple(batch_indices.shape)} and entries {batch_indices.flatten().tolist()}; "
                f"it must be one-dimensional, with entries from 0 to {batch - 1}"
            )

        def work() -> None:
            self._store.select(batch_indices)
            self._handle = None

        self._change("reorder", work)

    def attend(
        self,
        query: Float[Tensor, "B Hq Tq D"],
        *,
        epsilon: float | Tensor,
        scale: float | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        softcap: float | None = None,
        sink: Tensor | float | None = None,
        return_kept: bool = False,
        impl: str | None = None,
    ) -> Attention:
        """Attention over the keys held, reading only those that the sketch cannot rule out.

        For every row: `softmax mass of the keys left out <= certificate.tv <= epsilon`, and
        `|output - exact attention| <= certificate.output_error`, in real arithmetic on the values in memory.

        Args:
            query: (B, Hq, Tq, D), dtype and device of the index; Hq is a multiple of Hkv.
            epsilon: budget of total variation, in [0, 1): one number, or a tensor (Hq,) with one for each query head.
                At 0 the answer is dense and `tv` is 0.
            scale: multiplies `q.k`; any finite number. Default: the float64 nearest to `1 / sqrt(D)`.
            attn_mask: bool (True: visible) or a bias added to the logits, broadcastable to (B, Hq, Tq, Tk).
            is_causal: the queries are the last Tq positions, and see no later key.
            softcap: logits become `softcap * tanh(logits / softcap)` before the bias is added.
            sink: a logit that takes weight and gives no value: a number, (Hq,), or broadcastable to (B, Hq, Tq).
            return_kept: also return which keys got weight. Not inside `torch.compile`.
            impl: "torch" (any device, differentiable in the query) or "native" (C++, on the CPU). None picks the best
                that can serve the call; `stats.impl` says which.

        Returns:
            `Attention(output, certificate, stats, kept)`.

        Raises:
            ValueError: shapes, devices or numbers that do not fit, or an `impl` that cannot serve the call.
            TypeError: dtypes that do not fit.
            RuntimeError: another thread is changing the index.

        Source: the interval sketch of docs/engine.md; Tzachristas et al. 2025, Lemma 4.1 and Thm 5.2.
        """
        question = Question(query, epsilon, scale, attn_mask, is_causal, softcap, sink, impl)
        if torch.compiler.is_compiling():
            return ops.traced(question, self._store, return_kept)
        turns, token = self._store.turns, object()
        try:
            turns.ask(token)
            return ask(question, self._store, self._native(), return_kept)
        finally:
            turns.done(token)

    def __getstate__(self) -> dict[str, object]:
        """Copies hold their own buffers: addresses stay behind."""
        return {"_store": self._store, "_handle": None}

    def _native(self) -> native.Handle | None:
        """The kernels' view of the buffers, if kernels can work on them."""
        if self._handle is None and native.why_not_store(self._store.key.device, self._store.width) is None:
            self._handle = native.Handle(self._store)
        return self._handle

    def _write(self, key: Tensor, value: Tensor) -> None:
        if key.shape[2] == 0:
            return
        if self._store.reserve(key.shape[2]):
            self._handle = None
        if 0 in self._store.key.shape[:2]:
            self._store.place(self._store.start, self._store.stop + key.shape[2])
            return
        handle = self._native()
        if handle is None:
            coding.write(self._store, key, value)
        else:
            handle.append(self._store, key, value)

    def _change(self, name: str, work: Callable[[], None]) -> None:
        """Do what changes the index while nobody else is at it."""
        turns, token = self._store.turns, object()
        try:
            turns.change(token, name)
            work()
        finally:
            turns.done(token)

    def _check_count(self, name: str, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(self):
            raise ValueError(f"{name}={count!r} must be a whole number from 0 to {len(self)}, the number of keys held")
