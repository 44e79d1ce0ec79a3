"""A net played from a CUDA graph gives what the net gives, and leaves nothing behind."""

import gc

import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import TINY, ControlNet, ControlNetConfig, Residuals
from controlnet_pack.cldm_core.graphs import RecordedNet

from .cases import weighted

pytestmark = pytest.mark.cuda
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make(dtype: torch.dtype = torch.float32) -> ControlNet:
    return weighted(ControlNet(ControlNetConfig(TINY)), 3).to("cuda", dtype).requires_grad_(False)


def inputs(seed: int, dtype: torch.dtype = torch.float32, size: int = 8, texts: int = 1) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 4, size, size), (1, 64, size, size), (1,), (texts, 5, 128))
    x, features, time, context = (torch.randn(shape, generator=generator) for shape in shapes)
    return tuple(one.to("cuda", dtype) for one in (x, features, 100 * time.abs(), context))


def items(found: Residuals) -> list[Tensor]:
    return [one for one in (*found.output, *found.middle) if one is not None]


def same(first: Residuals, second: Residuals) -> bool:
    return all(torch.equal(a, b) for a, b in zip(items(first), items(second), strict=True))


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_played_net_is_the_net_bit_for_bit(dtype: torch.dtype, texts: int) -> None:
    net = make(dtype)
    recorded = RecordedNet(net)
    for seed in range(4):
        given = inputs(seed, dtype, texts=texts)
        with torch.inference_mode():
            assert same(net(*given), recorded(*given))
    assert recorded.played == 3


def test_results_are_the_caller_s() -> None:
    recorded = RecordedNet(make())
    recorded(*inputs(0))
    first = recorded(*inputs(1))
    kept = [one.clone() for one in items(first)]
    recorded(*inputs(2))
    assert all(torch.equal(a, b) for a, b in zip(items(first), kept, strict=True))


def test_what_is_lent_is_the_recording_s_own_until_the_next_call() -> None:
    net = make()
    recorded = RecordedNet(net, lends=True)
    addresses = set()
    for seed in range(4):
        given = inputs(seed)
        with torch.inference_mode():
            found = recorded(*given)
            assert same(net(*given), found)
        if recorded.played:
            addresses.add(items(found)[0].data_ptr())
    assert recorded.played == 3
    assert len(addresses) == 1


def test_sizes_take_turns() -> None:
    net = make()
    recorded = RecordedNet(net)
    for seed in range(6):
        given = inputs(seed, size=(8, 16)[seed % 2])
        with torch.inference_mode():
            assert same(net(*given), recorded(*given))
    assert recorded.played == 4


def test_weights_changed_in_place_are_seen() -> None:
    net = make()
    recorded = RecordedNet(net)
    for seed in range(2):
        recorded(*inputs(seed))
    net.middle_block_out[0].weight.data.mul_(2)
    with torch.inference_mode():
        assert same(net(*inputs(3)), recorded(*inputs(3)))
    assert recorded.played == 2


def test_moved_weights_are_recorded_anew() -> None:
    net = make()
    recorded = RecordedNet(net)
    for seed in range(2):
        recorded(*inputs(seed))
    zero = net.middle_block_out[0]
    zero.weight = nn.Parameter(2 * zero.weight, requires_grad=False)
    with torch.inference_mode():
        for seed in range(3):
            assert same(net(*inputs(seed)), recorded(*inputs(seed)))
    assert recorded.played == 3


def test_a_net_on_the_cpu_runs_as_it_is() -> None:
    net = make().cpu()
    recorded = RecordedNet(net)
    given = [one.cpu() for one in inputs(1)]
    for _ in range(3):
        with torch.inference_mode():
            assert same(net(*given), recorded(*given))
    assert recorded.played == 0


class Waits(nn.Module):
    """Asks the GPU for a number while it is recorded, which CUDA refuses."""

    def __init__(self, net: ControlNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, *given: Tensor) -> Residuals:
        assert float(given[0].abs().max()) >= 0
        return self.net(*given)


class Fails(Waits):
    """Breaks at its second call."""

    calls = 0

    def forward(self, *given: Tensor) -> Residuals:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("no memory")
        return self.net(*given)


@pytest.mark.parametrize("kind", [Waits, Fails])
def test_what_cant_be_recorded_runs_as_it_is(kind: type[Waits]) -> None:
    if kind is Waits and torch.cuda.get_allocator_backend() != "native":
        pytest.skip("with cudaMallocAsync PyTorch ends the process when a recording is refused")
    net = make()
    recorded = RecordedNet(kind(net))
    for seed in range(4):
        given = inputs(seed)
        with torch.inference_mode():
            assert same(net(*given), recorded(*given))
    assert recorded.played == 0
    # What a broken recording leaves behind breaks the random generator.
    torch.randn(3, device="cuda")
    again = RecordedNet(net)
    for seed in range(3):
        with torch.inference_mode():
            assert same(net(*inputs(seed)), again(*inputs(seed)))
    assert again.played == 2


def test_a_dropped_recording_frees_its_memory() -> None:
    net = make()

    def use() -> None:
        recorded = RecordedNet(net)
        for seed in range(3):
            recorded(*inputs(seed))

    use()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        use()
        gc.collect()
        assert torch.cuda.memory_allocated() == before
