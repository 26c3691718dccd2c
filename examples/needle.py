"""Put certificates into an evaluation: a needle test whose every answer says how far attention was from exact.

A sentence is hidden at two depths of a text, and SmolLM2 is asked for it, densely and under two budgets. A miss at a
small certified TV is the model's own; a miss at a large one may be the budget's. Accuracy alone cannot tell them apart.

Run: python examples/needle.py   (needs what smollm2.py says)
"""

import copy

import torch
from smollm2 import load

import tailbound

FILLER = "The harbour was quiet that morning. Gulls sat on the wall, and the tide was going out past the buoys. "
NEEDLE = "The code of the lighthouse door is {}. "
CODES = {0.1: "4817", 0.9: "7051"}
QUESTION = "What is the code of the lighthouse door? The code of the lighthouse door is"
REPEATS, TOKENS = 16, 5


@torch.inference_mode()
def main():
    tokenizer, model = load()
    print("depth   budget   found   keys kept   largest TV   written")
    for depth, code in CODES.items():
        sentences = [FILLER] * REPEATS
        sentences.insert(round(depth * REPEATS), NEEDLE.format(code))
        document = tokenizer("".join(sentences), return_tensors="pt").input_ids
        question = tokenizer(QUESTION, return_tensors="pt").input_ids
        prefilled = model(document, logits_to_keep=1).past_key_values
        for epsilon in (None, 0.01, 0.2):
            cache, ids = copy.deepcopy(prefilled), torch.cat([document, question], 1)
            write = {"past_key_values": cache, "max_new_tokens": TOKENS, "do_sample": False}
            if epsilon is None:
                written = model.generate(ids, **write)
                certified = f"{'100.0%':>9}   {'dense':>10}"
            else:
                with tailbound.hf.certify(model, epsilon=epsilon) as ledger:
                    written = model.generate(ids, **write)
                ledger.assert_within(epsilon)
                layers = ledger.by_layer()
                kept = sum(layer.kept_share for layer in layers) / len(layers)
                certified = f"{kept:9.1%}   {max(layer.tv_max for layer in layers):10.4f}"
            answer = tokenizer.decode(written[0, ids.shape[1] :])
            budget = "dense" if epsilon is None else f"{epsilon:g}"
            print(f"{depth:5.0%}   {budget:>6}   {'yes' if code in answer else 'no':>5}   {certified}   {answer!r}")


if __name__ == "__main__":
    main()
