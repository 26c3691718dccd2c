"""Certify a generation: a real model writes on after a long text, and every row of every step has a certificate.

Run: python examples/certify_a_generation.py   (needs what smollm2.py says)
"""

import argparse
import inspect

from smollm2 import load

import tailbound


def main():
    tokenizer, model = load()
    text = inspect.getsource(argparse)[:3000]
    inputs = tokenizer(text, return_tensors="pt")
    with tailbound.hf.certify(model, epsilon=0.01) as ledger:
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    length = inputs.input_ids.shape[1]
    print(f"after {length:,} tokens of argparse.py: {tokenizer.decode(written[0, length:])!r}\n")
    print(ledger.summary())
    ledger.assert_within(0.01)
    print(f"{len(ledger):,} certificates, none above 0.01")


if __name__ == "__main__":
    main()
