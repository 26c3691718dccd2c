"""The command line as a user meets it: in its own process."""

import os
import subprocess
import sys
from contextlib import contextmanager


class Quiet:
    """Progress that nobody looks at."""

    @contextmanager
    def task(self, name, total):
        yield lambda: None


class InterruptionError(Exception):
    pass


class Patience:
    """Progress that gives up after so many steps, as a user does."""

    def __init__(self, steps):
        self.left = steps

    @contextmanager
    def task(self, name, total):
        yield self.step

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise InterruptionError


def command(*arguments, typed=None, **env):
    """Run the command; `typed` is what it reads on stdin."""
    return subprocess.run(
        [sys.executable, "-m", "tailbound", *arguments],
        input=typed,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check_refused(shown, words):
    """Bad input is exit code 2 and one line on stderr."""
    assert (shown.returncode, shown.stdout) == (2, ""), shown.stderr
    assert words in shown.stderr, shown.stderr
    assert shown.stderr.startswith("tailbound: "), shown.stderr
    assert shown.stderr.count("\n") == 1, shown.stderr


def blocked(package, *arguments):
    """Run the command as if a package were not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['tailbound', *{arguments!r}]; "
        "from tailbound.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
