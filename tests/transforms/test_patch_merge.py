from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.transforms.patch_merge import RandPatchMerge, RandPatchMerged, RandSynthetic, RandSyntheticd


def pair(shape: tuple[int, ...] = (1, 48, 48), dtype: torch.dtype = torch.int16) -> dict[str, torch.Tensor]:
    return {"image": torch.full(shape, -700).to(dtype), "synthetic": torch.full(shape, 300).to(dtype)}


def test_every_voxel_comes_bit_identical_from_one_of_the_two_as_the_mask_says() -> None:
    data = pair()
    merged = RandPatchMerged("image", merge_mask_key="real").set_random_state(0)(data)
    real = merged["real"].bool()
    assert merged["image"].dtype == torch.int16 and merged["real"].dtype == torch.uint8
    assert torch.equal(merged["image"], torch.where(real, data["image"], data["synthetic"]))
    assert real.any() and not real.all()
    assert bool((data["image"] == -700).all())


def test_patches_are_a_sixth_of_the_side_as_in_the_paper() -> None:
    merged = RandPatchMerge(0.5).set_random_state(1)(*pair().values())
    cells = torch.as_tensor(merged.mask)[0].reshape(6, 8, 6, 8)
    assert bool((cells == cells[:, :1, :, :1]).all()) and len(cells[:, 0, :, 0].unique()) == 2


def test_alpha_is_the_share_of_the_real_image() -> None:
    transform = RandPatchMerge(0.6, 0.1).set_random_state(0)
    real, synthetic = torch.ones(1, 20, 20), torch.zeros(1, 20, 20)
    share = np.mean([float(torch.as_tensor(transform(real, synthetic).image).mean()) for _ in range(100)])
    assert share == pytest.approx(0.6, abs=0.02)
    assert torch.equal(torch.as_tensor(RandPatchMerge(1.0)(real, synthetic).image), real)
    assert torch.equal(torch.as_tensor(RandPatchMerge(0.0)(real, synthetic).image), synthetic)


def test_not_triggered_gives_the_real_image_and_the_same_keys() -> None:
    data = pair()
    off = RandPatchMerged("image", merge_mask_key="real", prob=0.0)(data)
    on = RandPatchMerged("image", merge_mask_key="real", prob=1.0)(data)
    assert off.keys() == on.keys() and off["image"] is data["image"]
    assert off["real"].dtype == on["real"].dtype and off["real"].shape == on["real"].shape and bool((off["real"] == 1).all())


def test_prob_is_the_probability_of_merging() -> None:
    transform = RandPatchMerged("image", alpha=0.0, prob=0.25).set_random_state(0)
    hits = np.mean([bool((transform(pair((1, 4, 4)))["image"] == 300).all()) for _ in range(400)])
    assert hits == pytest.approx(0.25, abs=0.06)


def test_the_draw_count_depends_on_neither_coin_nor_data() -> None:
    states = []
    for prob, shape in ((0.0, (1, 48, 48)), (1.0, (1, 48, 48)), (1.0, (3, 8, 9, 10))):
        transform = RandPatchMerged("image", prob=prob).set_random_state(3)
        transform(pair(shape))
        states.append(transform.R.randint(1 << 30))
    assert len(set(states)) == 1


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    first = RandPatchMerged("image").set_random_state(5)(pair())["image"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = RandPatchMerged("image").set_random_state(5)(pair())["image"]
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())


def test_volumes_keep_their_meta_data_and_all_keys_share_the_patches() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))
    data = {
        "t1": MetaTensor(torch.ones(1, 24, 24, 4), affine=affine),
        "t2": np.ones((1, 24, 24, 4), np.float32),
        "s1": torch.zeros(1, 24, 24, 4),
        "s2": torch.zeros(1, 24, 24, 4),
    }
    out = RandPatchMerged(["t1", "t2"], synthetic_keys=["s1", "s2"], alpha=0.5).set_random_state(0)(data)
    assert isinstance(out["t1"], MetaTensor) and torch.equal(out["t1"].affine, affine) and isinstance(out["t2"], np.ndarray)
    assert np.array_equal(out["t1"].numpy(), out["t2"]) and 0 < out["t2"].mean() < 1


def test_different_grids_and_missing_twins_are_refused() -> None:
    with pytest.raises(GridMismatchError, match="same spatial augmentation"):
        RandPatchMerge()(torch.ones(1, 8, 8), torch.ones(1, 8, 9))
    with pytest.raises(KeyError, match="no 'synthetic'"):
        RandPatchMerged("image")({"image": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match="one key for each"):
        RandPatchMerged(["a", "b"])
    with pytest.raises(ValueError, match="alpha"):
        RandPatchMerge(1.5)


def test_one_of_the_first_candidates_is_picked_up_to_the_ratio() -> None:
    files = [f"case_{i}.png" for i in range(10)]
    choose = RandSyntheticd("synthetic", ratio=4).set_random_state(0)
    picked = {choose({"synthetic": files})["synthetic"] for _ in range(60)}
    assert picked == set(files[:4])


def test_a_sample_with_fewer_candidates_than_the_ratio_is_fine_and_one_with_none_is_refused() -> None:
    choose = RandSynthetic(50).set_random_state(0)
    assert {choose(["a", "b"]) for _ in range(30)} == {"a", "b"}
    with pytest.raises(ValueError, match="no synthetic candidates"):
        choose([])


def test_all_keys_get_the_candidate_of_the_same_position() -> None:
    choose = RandSyntheticd(["t1", "t2"]).set_random_state(2)
    for _ in range(10):
        out = choose({"t1": [1, 2, 3], "t2": [10, 20, 30]})
        assert out["t2"] == 10 * out["t1"]
