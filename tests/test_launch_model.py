"""What the model of the launches picks on GPUs, none of which is needed."""

import math

import pytest
from fastindrnn.kernels.gpu import model
from hypothesis import example, given
from hypothesis import strategies as st

H200 = model.Device("wgmma", 132, 32, 50 << 20)
MI300X = model.Device("mfma", 304, 64, 256 << 20)


@pytest.mark.parametrize("tensors_read", [1, 2])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_one_launch_from_8000_channels_on(itemsize, tensors_read):
    """One pass over memory, in a ring of asynchronous copies."""
    for sizes in ((32, 1024, 512), (64, 1024, 1024), (16, 784, 512), (512, 1000, 2048)):
        plan = model.plan(H200, *sizes, itemsize, tensors_read, vector=16)
        assert plan.chunks == 1
        assert plan.stages > 1


def test_long_sequences_alone_get_chunks():
    assert 32 <= model.plan(H200, 1, 100_000, 256, 2, 1, vector=16).chunks <= 256
    assert model.plan(H200, 1, 50, 256, 2, 1, vector=16).chunks == 1


@given(
    st.sampled_from([H200, MI300X]),
    st.integers(1, 2500),
    st.integers(1, 2048),
    st.integers(1, 4096),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 4, 16]),
)
@example(MI300X, 76, 64, 308, 8, 2, 8)  # groups of 16 rows, and of 8 with twice the sequences
@example(MI300X, 46, 3541, 417, 8, 2, 16)  # 4 chunks, and 1 with twice the sequences
def test_plan_has_no_cliffs(device, B, T, N, itemsize, tensors_read, vector):
    """Twice as many sequences get no more chunks, and not less than half as many; steps that are
    twice as many get no fewer chunks. Every plan can be launched.

    The exceptions are a group of another size, and chunks that are doubled because each
    multiprocessor shall have 4 programs.
    """
    vector = max(vector, itemsize)
    half = model.plan(device, B, T, N, itemsize, tensors_read, vector)
    plan = model.plan(device, 2 * B, T, N, itemsize, tensors_read, vector)
    longer = model.plan(device, 2 * B, 2 * T, N, itemsize, tensors_read, vector)
    programs = half.chunks * B * math.ceil(N / half.block_n)
    assert plan.chunks <= half.chunks or plan.rows < half.rows
    assert half.chunks <= 2 * plan.chunks or programs < 8 * device.multiprocessors
    assert plan.chunks <= longer.chunks or plan.stages < longer.stages
    assert plan.chunks * plan.rows <= max(T, plan.rows)
    assert plan.rows <= 32
    assert plan.block_n % device.lanes == 0
    assert (plan.block_n - N) * 4 <= N or plan.block_n <= 2 * device.lanes
    ring = (plan.stages - 1) * plan.rows * tensors_read * plan.block_n * itemsize
    assert ring <= model.RING
    assert plan.stages == 1 or (device is H200 and vector >= 4 and plan.rows.bit_count() == 1)


def test_a_device_half_full_gets_two_chunks_at_most():
    """With 48.5 % of the bytes in flight that there should be, four chunks were picked once."""
    goal = H200.multiprocessors * model.GOAL
    for itemsize in (2, 4):
        for B in range(1, 300):
            plan = model.plan(H200, B, 1024, 64, itemsize, 1, vector=16)
            in_flight = B * 64 * itemsize * plan.rows * max(plan.stages - 1, 1)
            assert plan.chunks == 1 or 3 * in_flight < 2 * goal
            assert plan.chunks <= 2 or 3 * in_flight < goal


def test_weights_stay_where_they_fit():
    for family in model.FAMILIES:
        for backward in (False, True):
            for K in (256, 512):
                streamed = model.pick_tile(family, 512, K, 2, backward, True, chained=True)
                assert not streamed.ahead, "each program of a chain has one tile"
                stays = model.pick_tile(family, 512, K, 2, backward, True)
                rates = model.FAMILIES[family]
                widest = rates.resident_backward if backward else rates.resident
                assert stays.ahead == (widest >= 2 * K)
            assert not model.pick_tile(family, 512, 520, 2, backward, True).ahead
            assert not model.pick_tile(family, 512, 200, 2, backward, aligned=False).ahead
    streamed = model.pick_tile("wgmma", 512, 512, 2, False, True, chained=True)
    stays = model.pick_tile("wgmma", 512, 512, 2, False, True)
    for B in (8, 128):
        layer = model.LayerSizes(B, T=1024, K=512, N=512, itemsize=2, backward=False)
        times = [model.fused_time(H200, layer, tile, False) for tile in (stays, streamed)]
        assert times[0] < times[1]


def test_each_thread_waits_for_a_number_of_its_own():
    """Threads that poll the same number may see it at different times."""
    for family in model.FAMILIES:
        lanes = 64 if family == "mfma" else 32
        for N in (16, 70, 512):
            for K in (40, 512):
                for backward in (False, True):
                    for aligned in (False, True):
                        tile = model.pick_tile(family, N, K, 2, backward, aligned)
                        copies = model.constants_of(tile, K, lanes)["COPIES"]
                        assert copies * tile.block_n >= tile.warps * lanes


def test_model_fuses_narrow_products_and_splits_wide_ones():
    def choose(B, T, K, N, strategy="auto", backward=False):
        return model.choose(H200, strategy, B, T, K, N, 2, backward, True, True, B)

    narrow = choose(32, 1024, 128, 128)
    assert narrow.tile is not None
    assert narrow.chained, "32 programs do not fill 132 multiprocessors"
    assert not choose(512, 1024, 64, 128).chained
    wide = choose(512, 1024, 1024, 1024)
    assert wide.tile is None
    assert wide.slices > 1, "1 GiB does not stay in a cache of 50 MiB"
    assert choose(1, 2**20, 256, 256).tile is None, "8,192 hops of a chain"
    assert choose(64, 1024, 2048, 2048, "fused").tile is not None
    assert choose(32, 1024, 128, 128, "split").tile is None
