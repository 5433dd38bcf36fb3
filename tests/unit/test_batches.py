from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import Batches, SampleOrder, TokenRow
from tunesmith.data.batches import plan_micro_batches
from tunesmith.model.hf.padded import collate

lengths_lists = st.lists(st.integers(1, 300), min_size=1, max_size=24)


def cost(lengths: list[int], micro_batches: list[list[int]], overhead: int) -> int:
    return sum(max(lengths[i] for i in cut) * len(cut) + overhead for cut in micro_batches)


@given(lengths_lists, st.one_of(st.none(), st.integers(1, 8)), st.integers(1, 1000), st.integers(0, 200))
def test_every_sample_is_in_exactly_one_cut(lengths: list[int], rows: int | None, most: int,
                                            overhead: int) -> None:
    micro_batches = plan_micro_batches(lengths, rows=rows, max_tokens=most, overhead_tokens=overhead)
    assert sorted(itertools.chain(*micro_batches)) == list(range(len(lengths)))
    for cut in micro_batches:
        if rows is not None:
            assert len(cut) <= rows
        else:
            assert len(cut) == 1 or max(lengths[i] for i in cut) * len(cut) <= most


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 60))
def test_the_cut_is_the_cheapest_contiguous_one(lengths: list[int], overhead: int) -> None:
    found = cost(lengths, plan_micro_batches(lengths, rows=None, max_tokens=10**9, overhead_tokens=overhead),
                 overhead)
    order = sorted(lengths, reverse=True)
    best = min(sum(max(order[a:b]) * (b - a) + overhead
                   for a, b in itertools.pairwise([0, *where, len(order)]))
               for count in range(len(order))
               for where in itertools.combinations(range(1, len(order)), count))
    assert found == best


@given(lengths_lists, st.integers(1, 1000))
def test_without_padding_only_real_tokens_count(lengths: list[int], most: int) -> None:
    micro_batches = plan_micro_batches(lengths, rows=None, max_tokens=most, overhead_tokens=10, padded=False)
    assert sorted(itertools.chain(*micro_batches)) == list(range(len(lengths)))
    assert all(len(cut) == 1 or sum(lengths[i] for i in cut) <= most for cut in micro_batches)
    if sum(lengths) <= most:
        assert len(micro_batches) == 1


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6), min_size=1,
                max_size=5))
def test_padding_is_masked_and_never_learnt(rows: list[list[tuple[int, bool]]]) -> None:
    token_rows = [TokenRow([i for i, _ in row], [loss_mask for _, loss_mask in row], [], "", "", "")
                  for row in rows]
    batch = collate(token_rows, pad_id=3)
    assert sum(len(row) for row in rows) == batch.attention_mask_BT.sum()
    for i, row in enumerate(token_rows):
        assert batch.input_ids_BT[i, : len(row.ids)].tolist() == row.ids
        labels = [token if loss_mask else -100
                  for token, loss_mask in zip(row.ids, row.loss_mask, strict=True)]
        assert batch.labels_BT[i].tolist() == labels + [-100] * (batch.labels_BT.shape[1] - len(labels))


@given(st.integers(1, 40), st.integers(0, 2**62), st.integers(0, 200), st.integers(1, 50))
def test_order_is_a_permutation_an_epoch_and_a_function_of_position(count: int, seed: int, start: int,
                                                                    more: int) -> None:
    order = SampleOrder(count, seed)
    assert sorted(order.take(2 * count, count)) == list(range(count))
    assert SampleOrder(count, seed).take(start, more) == order.take(0, start + more)[start:]


def test_another_seed_is_another_order() -> None:
    assert SampleOrder(100, 0).take(0, 100) != SampleOrder(100, 1).take(0, 100)
    assert not np.array_equal(SampleOrder(100, 0).take(0, 100), SampleOrder(100, 0).take(100, 100))


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.floats(0.05, 3))
def test_an_epoch_ends_with_its_rows(count: int, batch_size: int, epochs: float) -> None:
    batches, order = Batches(count, batch_size, epochs), SampleOrder(count, 3)
    seen: list[int] = []
    assert batches.total_steps is not None
    for step in range(batches.total_steps):
        assert batches.samples_after(step) == len(seen)
        size = batches.size_at(len(seen))
        assert 1 <= size <= batch_size
        assert len(seen) // count == (len(seen) + size - 1) // count, "no batch is of two epochs"
        seen += order.take(len(seen), size)
    assert len(seen) == batches.samples_after(batches.total_steps) == batches.total_samples
    assert len(seen) == max(1, round(epochs * count))
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count:(epoch + 1) * count]) == list(range(count))


def test_steps_that_are_counted_run_on_across_epochs() -> None:
    batches = Batches(39, 16)
    assert (batches.total_steps, batches.size_at(32), batches.samples_after(3)) == (None, 16, 48)
    by_epochs = Batches(39, 16, 1)
    assert (by_epochs.total_steps, by_epochs.size_at(32), by_epochs.samples_after(3)) == (3, 7, 39)
