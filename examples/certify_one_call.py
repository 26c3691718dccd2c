"""Certify one attention call, and check the certificate from outside.

A query asks 4,096 keys under four budgets. Beside each certificate stands the truth, worked out here in float64 from
the kept set that the call returns: it never exceeds the certificate.

Run: python examples/certify_one_call.py
"""

import torch

import tailbound


def main():
    torch.manual_seed(0)
    query = 3 * torch.randn(1, 8, 1, 64)  # logits with a standard deviation of 3, as decoders have them
    key, value = torch.randn(1, 2, 4096, 64), torch.randn(1, 2, 4096, 64)
    index = tailbound.KVIndex(key, value)

    logits = query.double() @ key.double().repeat_interleave(4, dim=1).mT / 8
    weights = logits.softmax(-1)
    exact = weights @ value.double().repeat_interleave(4, dim=1)

    print("epsilon   keys kept   certified TV    true TV   certified error   true error")
    for epsilon in (0.001, 0.01, 0.05, 0.2):
        answer = index.attend(query, epsilon=epsilon, return_kept=True)
        tv, output_error, kept, _ = answer.certificate
        true_tv = (weights * ~answer.kept).sum(-1)
        true_error = (answer.output.double() - exact).norm(dim=-1)
        assert (tv >= true_tv).all()
        assert (output_error >= true_error).all()
        figures = (tv.max(), true_tv.max(), output_error.max(), true_error.max())
        print(
            f"{epsilon:7g}{kept.double().mean() / len(index):12.1%}   "
            + "{:12.6f}{:11.6f}{:18.4f}{:13.4f}".format(*figures)
        )
    print("largest over 8 heads; the truth is never above the certificate")


if __name__ == "__main__":
    main()
