"""How much an error of a head's output costs the model, to second order.

Let delta be the change of a head's output at one position. The KL divergence of the next tokens from the dense ones is
1/2 delta^T F delta to second order, F the Fisher information of the next tokens with respect to the output: the mean
of g g^T, where g is the gradient of the log probability of tokens drawn from the model itself. So with a few drawn g
the damage of any change is estimated by 1/2 (g . delta)^2, for all heads at once, without running the model under each.
Damages of different heads and positions are added, as if the errors were independent.

For an encoder F is the metric of the relative squared distance of its last hidden states, and g a gradient of their
product with a random vector.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tailbound.lab.audit.reading import Reading, exact, frozen
from tailbound.lab.listening import Heard, check_heard


def gradients(reading: Reading, draws: int, seed: int, advance: Callable[[], None]) -> dict[int, Tensor]:
    """For each layer the gradients of `reading.damage` with respect to its heads' outputs: (draws, Hq, Q, Dv).

    Raises:
        InputError: a model whose layers cannot be heard.
    """
    probes: dict[int, Tensor] = {}

    def probe(heard: Heard) -> Tensor:
        output = exact(heard)
        probes[heard.layer] = torch.zeros_like(output).requires_grad_()
        return output + probes[heard.layer]

    generator = torch.Generator().manual_seed(seed)
    found: dict[int, list[Tensor]] = {}
    with frozen(reading.model), torch.enable_grad():
        answer = reading.answer(probe)
        check_heard(reading.model, set(probes), reading.layers)
        layers = sorted(probes)
        for draw in range(draws):
            scalar = reading.damage(answer, generator)
            asked = [probes[layer] for layer in layers]
            for layer, gradient in zip(
                layers, torch.autograd.grad(scalar, asked, retain_graph=draw + 1 < draws), strict=True
            ):
                found.setdefault(layer, []).append(gradient[0].detach())
            advance()
    return {layer: torch.stack(parts) for layer, parts in found.items()}
