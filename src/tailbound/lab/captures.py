"""`tailbound capture`: queries, keys and values of a real model on a real text, and the file that holds them.

A capture has, for layer i, `layers.<i>.query` (1, Hq, queries, D) of the last positions of the text, and
`layers.<i>.key` (1, Hkv, context, D) and `layers.<i>.value` (1, Hkv, context, Dv) of all of them, as attention gets
them: after rotation, heads not repeated. Query j of m sees the first `context - m + j + 1` keys.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tailbound.lab import models, seals, text
from tailbound.lab.errors import InputError, need
from tailbound.lab.listening import Heard, listening
from tailbound.lab.progress import Progress

SCHEMA = "tailbound.capture/2"


class Options(NamedTuple):
    """What to capture, and where to. `text` is a file, or None for the source of Python's standard library."""

    output: Path
    model: str = models.SMALL
    text: Path | None = None
    context: int = 8192
    queries: int = 64
    dtype: str = "bfloat16"
    download: bool = False


@dataclass(frozen=True)
class Summary:
    """What was written."""

    output: str
    model: str
    text: str
    dtype: str
    context: int
    queries: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The same, as `tailbound capture --json` prints it."""
        return {"schema": SCHEMA} | asdict(self)


class Layer(NamedTuple):
    """Attention's inputs in one layer: query (1, Hq, T, D) of the last positions, key, value (1, Hkv, n, D or Dv)."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float


class Capture(NamedTuple):
    """A file as read: the layers in order, and what the file says of itself."""

    layers: list[Layer]
    metadata: dict[str, str]


def capture(options: Options, progress: Progress) -> Summary:
    """Read the text with the model once, exactly and in float32, and write what attention was given, cast to `dtype`.

    Raises:
        InputError: anything about the options that cannot be had.
    """
    save = _safetensors().save_file
    _check(options)
    started = time.perf_counter()
    title, document = text.read_text(options.text)
    source = models.Source(options.model, "float32", options.download)
    with progress.task("reading the tokenizer", None):
        source.check_positions(options.context, f"--context {options.context}")
        tokenizer = source.tokenizer()
    ids = text.first_tokens(tokenizer, document, options.context, title)
    with progress.task("reading the model", None):
        model = source.model()

    layers = _take(model, ids, options, progress)
    metadata = {
        "schema": SCHEMA,
        "model": options.model,
        "text": title,
        "dtype": options.dtype,
        "scale": json.dumps([layer.scale for layer in layers]),
        "transformers": importlib.metadata.version("transformers"),
        "torch": torch.__version__,
    }
    tensors = {
        f"layers.{i}.{name}": getattr(layer, name)
        for i, layer in enumerate(layers)
        for name in ("query", "key", "value")
    }
    _write(save, tensors, metadata | {seals.SEAL: seals.of_tensors(tensors, metadata)}, options.output)
    query, key = layers[0].query, layers[0].key
    return Summary(
        output=str(options.output),
        model=options.model,
        text=title,
        dtype=options.dtype,
        context=options.context,
        queries=options.queries,
        layers=len(layers),
        heads=query.shape[1],
        kv_heads=key.shape[1],
        head_dim=key.shape[3],
        bytes=options.output.stat().st_size,
        seconds=time.perf_counter() - started,
    )


def load(path: Path) -> Capture:
    """Read a capture.

    Raises:
        InputError: a file that is not there, or is none.
    """
    opening = _safetensors().safe_open
    if not path.is_file():
        raise InputError(f"no such file: {path}; `tailbound capture --output {path}` makes one")
    try:
        with opening(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("schema") != SCHEMA:
                found = metadata.get("schema", "no schema")
                raise InputError(f"{path} is not a capture: it says {found!r}, and a capture says {SCHEMA!r}")
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata.pop(seals.SEAL, None) != seals.of_tensors(tensors, metadata):
            raise InputError(f"{path} is not as it was written: its {seals.SEAL} does not fit; make it again")
        scales = json.loads(metadata["scale"])
        parts = ([tensors[f"layers.{i}.{name}"] for name in ("query", "key", "value")] for i in range(len(scales)))
        layers = [Layer(*part, scale=float(scale)) for part, scale in zip(parts, scales, strict=True)]
    except InputError:
        raise
    except Exception as error:  # safetensors has errors of its own, which cannot be named without it
        raise InputError(f"cannot read {path} as a capture: {error}") from error
    if not layers:
        raise InputError(f"{path} holds no layers; make it again with `tailbound capture`")
    return Capture(layers, metadata)


def default_path(context: int, queries: int, dtype: str) -> Path:
    """Where a benchmark keeps the capture that it made: in the user's cache folder (`XDG_CACHE_HOME`)."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = SCHEMA.rpartition("/")[2]
    return root / "tailbound" / f"{models.SMALL}-{context}-{queries}-{dtype}-v{version}.safetensors"


def _check(options: Options) -> None:
    if options.dtype not in models.DTYPES:
        raise InputError(f"--dtype {options.dtype}: allowed are {', '.join(models.DTYPES)}")
    if options.queries < 1:
        raise InputError(f"--queries {options.queries}: at least 1 is needed")
    if options.queries > options.context:
        raise InputError(f"--queries {options.queries}: at most the {options.context} positions of --context")
    folder = options.output.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {options.output}: {folder} is not a folder; create it first")
    if options.output.is_dir():
        raise InputError(f"cannot write {options.output}: it is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {options.output}: no permission to write in {folder}")


def _write(save: Any, tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Whole or not at all: under another name first."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save(tensors, unfinished, metadata=metadata)
        os.replace(unfinished, path)
    except Exception as error:  # as in `load`
        unfinished.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error}") from error


def _take(model: Any, ids: Tensor, options: Options, progress: Progress) -> list[Layer]:
    dtype, layers = models.DTYPES[options.dtype], dict[int, Layer]()

    def copy(tensor: Tensor) -> Tensor:
        """In its own memory: a view would hold the model's larger tensor."""
        return tensor.detach().to(dtype, copy=True).contiguous()

    with progress.task("capture, by layer", getattr(model.config, "num_hidden_layers", None)) as advance:

        def take(heard: Heard) -> None:
            heard.check_plain()
            last = heard.query[:, :, -options.queries :]
            layers[heard.layer] = Layer(copy(last), copy(heard.key), copy(heard.value), heard.scale)
            advance()

        with listening(model, take), torch.inference_mode():
            model.base_model(ids, use_cache=False)
    if not layers:
        raise InputError(
            f"{type(model).__name__} does not call the attention interface of transformers; choose another"
        )
    return [layers[i] for i in sorted(layers)]


class _Library(NamedTuple):
    save_file: Any
    safe_open: Any


def _safetensors() -> _Library:
    need("safetensors", "captures need the hf extra", "hf")
    from safetensors import safe_open
    from safetensors.torch import save_file

    return _Library(save_file, safe_open)
