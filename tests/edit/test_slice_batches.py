from __future__ import annotations

import weakref

import pytest
import torch

from monai_diffaug.edit.slice_batches import batch_sizes, in_batches
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec


def test_batches_are_halved_until_they_fit_and_one_that_never_fits_is_an_error() -> None:
    sizes: list[int] = []

    def scarce(part: slice) -> torch.Tensor:
        count = part.stop - part.start
        sizes.append(count)
        if count > 2:
            raise torch.OutOfMemoryError("no memory")
        return torch.arange(part.start, part.stop)

    assert in_batches(scarce, 9, 8).tolist() == list(range(9))
    assert sizes == [8, 4, 2, 2, 2, 2, 1]

    def never(part: slice) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(never, 3, 2)


def test_what_a_call_held_that_ran_out_of_memory_is_free_before_it_is_tried_again() -> None:
    references: list[weakref.ref[torch.Tensor]] = []

    def scarce(part: slice) -> torch.Tensor:
        assert all(reference() is None for reference in references)
        large = torch.ones(8)
        references.append(weakref.ref(large))
        if part.stop - part.start > 1:
            raise torch.OutOfMemoryError("no memory")
        return large.clone()

    in_batches(scarce, 2, 2)
    assert len(references) == 3


def test_a_given_batch_size_is_used() -> None:
    assert batch_sizes(load_inpainter(ModelSpec("inpainter", "tiny"), torch.device("cpu")), 64, True, 3) == (3, 3)


@pytest.mark.parametrize(("side_px", "expected"), [(64, (16, 16)), (128, (16, 4)), (256, (4, 1)), (2048, (1, 1))])
def test_on_a_cpu_the_largest_feature_maps_stay_within_their_bytes(side_px: int, expected: tuple[int, int]) -> None:
    model = load_inpainter(ModelSpec("inpainter", "tiny"), torch.device("cpu"))
    assert batch_sizes(model, side_px, True, None) == expected


def test_without_guidance_twice_as_many_slices_go_through_the_unet() -> None:
    model = load_inpainter(ModelSpec("inpainter", "tiny"), torch.device("cpu"))
    assert batch_sizes(model, 256, False, None)[0] == 2 * batch_sizes(model, 256, True, None)[0]
