"""Who works on an index right now: questions side by side, changes alone.

What does not fit is refused, never waited for. Kernels give up the GIL, so another thread may come in the middle of a
question. Waiting takes a lock, which a fork, an interrupt or a finaliser can leave locked; a refusal cannot hang.
"""

from __future__ import annotations

import os


class _Process:
    """This process, as an object that a forked child replaces: os.getpid is a system call, and costs more."""

    now = object()
    watched = False

    @classmethod
    def watch(cls) -> None:
        if not cls.watched and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=cls._forked)
        cls.watched = True

    @classmethod
    def _forked(cls) -> None:
        cls.now = object()


class Turns:
    """Announcements of one index. Each is one operation on a dict, atomic in CPython, and is taken back in `finally`.

    A question announces itself and then looks for a change; a change announces itself and then looks for questions. So
    of two that meet, at least one sees the other. Both may be refused; neither has touched anything then.

    >>> turns, question, change = Turns(), object(), object()
    >>> turns.ask(question)
    >>> turns.change(change, "append")
    Traceback (most recent call last):
    RuntimeError: append: another thread is asking this index; ...
    >>> turns.done(change), turns.done(question)
    (None, None)
    >>> turns.change(change, "append")
    """

    __slots__ = ("_asking", "_changing")

    def __init__(self) -> None:
        _Process.watch()
        self._asking: dict[object, object] = {}  # the process of each question
        self._changing: dict[str, tuple[object, object]] = {}

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        """Copies begin with nobody at work on them."""
        return Turns, ()

    def ask(self, token: object) -> None:
        """Announce a question.

        Raises:
            RuntimeError: the index is being changed.
        """
        self._asking[token] = _Process.now
        if self._changing:
            self._refuse("attend", *self._changing.values())

    def change(self, token: object, name: str) -> None:
        """Announce a change of that name.

        Raises:
            RuntimeError: the index is being changed or asked.
        """
        mine = token, _Process.now
        holder = self._changing.setdefault("", mine)
        if holder is not mine:
            self._refuse(name, holder)
        if self._asking and any(process is mine[1] for process in list(self._asking.values())):
            raise RuntimeError(f"{name}: another thread is asking this index; {_REMEDY}")

    def done(self, token: object) -> None:
        """Take back what was announced, if it was."""
        self._asking.pop(token, None)
        if self._changing and self._changing.get("", (None,))[0] is token:
            self._changing.pop("", None)

    def _refuse(self, name: str, *holders: tuple[object, object]) -> None:
        for _, process in holders:
            if process is not _Process.now:
                raise RuntimeError(
                    f"{name}: this process was forked while a thread was changing this index, which is half changed "
                    "here; build it anew"
                )
            raise RuntimeError(f"{name}: another thread is changing this index; {_REMEDY}")


_REMEDY = "an index may be asked by several threads at once, but not while it changes: hold one lock around both"
