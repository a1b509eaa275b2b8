"""The pretended card refuses what a card refuses, so that what runs on it says something."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.card import CardError
from vista.ops.qla_triton import piece_sums
from vista.serving.captured import Captured

CUDA = "cuda"


def test_the_card_refuses_operands_of_two_devices_and_arrays_of_its_memory():
    x = torch.randn(3, 4, device=CUDA, requires_grad=True)
    assert x.is_cuda and (x * 2 + torch.tensor(1.0)).device.type == CUDA
    with pytest.raises(CardError, match="same device"):
        x + torch.ones(4)
    with pytest.raises(TypeError, match="numpy"):
        x.detach().numpy()
    (x @ x.T).sum().backward()
    assert x.grad.is_cuda and not x.grad.cpu().is_cuda


def test_the_card_refuses_a_kernel_whose_bounds_are_on_the_host():
    x = torch.randn(4, 1, 8, device=CUDA)
    with pytest.raises(CardError, match="cpu tensor"):
        piece_sums(x, x, torch.tensor([0, 4]), 4, None)


def test_the_card_notices_a_stream_that_did_not_wait():
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        x = torch.ones(3, device=CUDA)
    with pytest.raises(CardError, match="without waiting"):
        x + 1
    torch.cuda.current_stream().wait_stream(other)
    assert (x + 1).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "ask", [lambda x: x.new_tensor([1.0, 2.0]), lambda x: x.sum().item(), lambda x: x.cpu()]
)
def test_what_asks_the_card_cannot_be_recorded_and_runs_without_a_graph(ask):
    step = Captured(lambda plan, x: (ask(x), x + 1)[1])
    x = torch.ones(2, device=CUDA)
    assert step(0, lambda: None, x=x).tolist() == [2.0, 2.0]
    with pytest.warns(RuntimeWarning, match="stream is capturing"):
        step(0, lambda: None, x=x)
    assert step.told and step(0, lambda: None, x=x).tolist() == [2.0, 2.0]
