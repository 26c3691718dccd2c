"""Which implementation answers: named ones serve or refuse, never fall back in silence."""

import pytest
import torch

import tailbound


def tensors():
    return torch.randn(1, 1, 1, 4), torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4)


def test_none_picks_torch_and_says_so():
    assert tailbound.attention(*tensors(), epsilon=0.1).stats.impl == "torch"


def test_native_refuses_and_names_the_remedy():
    with pytest.raises(ValueError, match=r"cannot serve this call.*impl='torch'"):
        tailbound.attention(*tensors(), epsilon=0.1, impl="native")
    q, k, v = tensors()
    with pytest.raises(ValueError, match=r"gradients.*impl='torch'"):
        tailbound.attention(q.requires_grad_(), k, v, epsilon=0.1, impl="native")


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="impl='fast' is unknown; allowed: 'reference', 'torch', 'native'"):
        tailbound.attention(*tensors(), epsilon=0.1, impl="fast")
