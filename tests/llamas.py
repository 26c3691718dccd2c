"""Small random Llamas, so that every path of transformers' own code is quick to reach."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tailbound.lab import models

LONG = 600
"""A prompt that is read sparsely: up to 256 keys the kernels read all of them."""


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 97}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=2, **changes)
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None  # write as much as was asked for
    for layer in model.model.layers:  # random weights give flat attention: sharpen it
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.k_proj.weight.data *= 20
    return model


def saved(folder):
    """A folder with a small one and SmolLM2's tokenizer."""
    model, tokenizer = llama(), models.Source("smollm2").tokenizer()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt(length=LONG, batch=1, seed=1):
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, count=12, attention_mask=None, **options):
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask  # else generate() guesses it from the ids
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(ids, attention_mask=mask, **options)
