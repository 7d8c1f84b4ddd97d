"""``RandPatchMerge`` and ``RandPatchMerged``: merge a real image and its synthetic twin, patch by patch, under one label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple
from torch import Tensor

from monai_diffaug.edit.signature import Described
from monai_diffaug.errors import GridMismatchError
from monai_diffaug.masks.patch_grid import ALPHA, PATCH_FRACTION, bernoulli, check_merge, grid_shape, upsampled
from monai_diffaug.sampling.seeding import draw_seed, slice_generators
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = [
    "Merge",
    "RandPatchMerge",
    "RandPatchMergeD",
    "RandPatchMergeDict",
    "RandPatchMerged",
    "RandSynthetic",
    "RandSyntheticD",
    "RandSyntheticDict",
    "RandSyntheticd",
]


class Merge(NamedTuple):
    """The result of ``RandPatchMerge``.

    Attributes:
        image: the merged image.
        mask: (1, H, W[, D]) uint8, 1 where the voxel is real, 0 where it is synthetic.

    >>> Merge(image="merged", mask="is real").mask
    'is real'
    """

    image: NdarrayOrTensor
    mask: NdarrayOrTensor


class RandPatchMerge(SeededTransform):
    """Merge patches: x R + x' (1 - R) with R = up_nearest(Bernoulli(alpha)) (EMIT-Diff, Zhang et al., TMI 2024).

    Voxels are copied, never averaged.

    Args:
        alpha: probability that a patch is taken from the real image.
        patch_fraction: side of a patch as a share of the image's side; 64 / 384 is the paper's 64 pixels at 384.
        prob: probability of being applied; otherwise the real image comes back as it is.

    Raises:
        ValueError: alpha outside [0, 1] or patch_fraction outside (0, 1].

    >>> import torch
    >>> real, synthetic = torch.zeros(1, 48, 48), torch.ones(1, 48, 48)
    >>> merged, is_real = RandPatchMerge(alpha=0.6).set_random_state(seed=0)(real, synthetic)
    >>> bool((merged == 1 - is_real).all()), 0 < int(is_real.sum()) < 48 * 48
    (True, True)
    """

    def __init__(self, alpha: float = ALPHA, patch_fraction: float = PATCH_FRACTION, *, prob: float = 1.0) -> None:
        SeededTransform.__init__(self, prob)
        check_merge(alpha, patch_fraction)
        self.alpha = alpha
        self.patch_fraction = patch_fraction

    def __call__(self, real: NdarrayOrTensor, synthetic: NdarrayOrTensor, randomize: bool = True) -> Merge:
        """Merge two images (C, H, W[, D]) of one shape; the result has the type, dtype and meta data of the real one."""
        if randomize:
            self.randomize()
        return self.merge(real, synthetic, seed=self.seed, triggered=self._do_transform)

    def merge(self, real: NdarrayOrTensor, synthetic: NdarrayOrTensor, *, seed: int, triggered: bool = True) -> Merge:
        """Merge with a given seed; no random numbers are drawn from the instance.

        Raises:
            GridMismatchError: the images have different shapes.
        """
        if tuple(real.shape) != tuple(synthetic.shape):
            raise GridMismatchError(
                f"the real image {tuple(real.shape)} and the synthetic one {tuple(synthetic.shape)} are on different grids; "
                "add ResampleToMatchd before, and give both the same spatial augmentation"
            )
        spatial = tuple(real.shape[1:])
        if not triggered:
            return Merge(real, convert_to_dst_type(torch.ones(1, *spatial), real, dtype=torch.uint8)[0])
        cells = bernoulli((1, *grid_shape(spatial, self.patch_fraction)), self.alpha, slice_generators(seed, [0])[0])
        original: Tensor = convert_to_tensor(real, track_meta=False)
        twin: Tensor = convert_to_tensor(synthetic, track_meta=False).to(original)
        is_real = upsampled(cells, spatial)[0].to(original.device)
        merged = convert_to_dst_type(torch.where(is_real, original, twin), real)[0]
        return Merge(merged, convert_to_dst_type(is_real, real, dtype=torch.uint8)[0])


class RandPatchMerged(SeededTransform, MapTransform):
    """Dictionary form of ``RandPatchMerge``; the same patches for all keys of a sample.

    Args:
        keys: real images; the merged images replace them.
        synthetic_keys: key of the synthetic twin, one for each of ``keys``; the twins stay in the sample.
        alpha: probability that a patch is taken from the real image.
        patch_fraction: side of a patch as a share of the image's side.
        merge_mask_key: key that R (1, H, W[, D]) uint8 of the last image is written to, all 1 when not triggered; None writes nothing.
        prob: probability of being applied.
        allow_missing_keys: skip images that a sample lacks.

    Raises:
        ValueError: not one synthetic key for each key.
        KeyError: the sample has no synthetic image.

    >>> import torch
    >>> sample = {"image": torch.zeros(1, 48, 48), "synthetic": torch.ones(1, 48, 48)}
    >>> merge = RandPatchMerged("image", synthetic_keys="synthetic", merge_mask_key="real").set_random_state(seed=0)
    >>> merged = merge(sample)
    >>> bool((merged["image"] == 1 - merged["real"]).all())
    True
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        synthetic_keys: str | Sequence[str] = "synthetic",
        alpha: float = ALPHA,
        patch_fraction: float = PATCH_FRACTION,
        merge_mask_key: str | None = None,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        self.synthetic_keys = ensure_tuple(synthetic_keys)
        if len(self.synthetic_keys) != len(self.keys):
            raise ValueError(f"synthetic_keys must name one key for each of {self.keys}, got {self.synthetic_keys}")
        self.patches = RandPatchMerge(alpha, patch_fraction)
        self.merge_mask_key = merge_mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        d = dict(data)
        for key, synthetic_key in self.key_iterator(d, self.synthetic_keys):
            if synthetic_key not in d:
                names = ", ".join(map(str, d))
                raise KeyError(f"the sample has no {synthetic_key!r} (it has {names}); name the key of the synthetic image")
            d[key], mask = self.patches.merge(d[key], d[synthetic_key], seed=self.seed, triggered=self._do_transform)
            if self.merge_mask_key is not None:
                d[self.merge_mask_key] = mask
        return d


RandPatchMergeD = RandPatchMergeDict = RandPatchMerged


class RandSynthetic(SeededTransform):
    """Pick one of the first ``ratio`` synthetic candidates of a real image: the ratio of synthetic to real images.

    Args:
        ratio: largest number of candidates per real image; 50 was best in EMIT-Diff. A sample may have fewer.

    Raises:
        ValueError: ratio below 1.

    >>> choose = RandSynthetic(ratio=2).set_random_state(seed=0)
    >>> {choose(["a.png", "b.png", "c.png"]) for _ in range(20)} == {"a.png", "b.png"}
    True
    """

    def __init__(self, ratio: int = 50) -> None:
        SeededTransform.__init__(self, 1.0)
        if ratio < 1:
            raise ValueError(f"ratio must be >= 1, got {ratio}")
        self.ratio = ratio

    def __call__(self, candidates: Sequence[Any], randomize: bool = True) -> Any:
        """One of the candidates (file names or images).

        Raises:
            ValueError: no candidates.
        """
        if randomize:
            self.randomize()
        usable = min(len(candidates), self.ratio)
        if usable == 0:
            raise ValueError("a sample has no synthetic candidates; drop it from the list or generate some first")
        return candidates[self.seed % usable]


class RandSyntheticd(RandomizableTransform, MapTransform, Described):
    """Replace each key's list of synthetic candidates with one of them, e.g. of file names before ``LoadImaged``.

    Args:
        keys: lists of candidates; all keys of a sample get the candidate of the same position.
        ratio: largest number of candidates per real image.
        allow_missing_keys: skip keys that a sample lacks.

    >>> choose = RandSyntheticd("synthetic").set_random_state(seed=0)
    >>> choose({"image": "real.png", "synthetic": ["a.png", "b.png"]})["synthetic"] in ("a.png", "b.png")
    True
    """

    def __init__(self, keys: KeysCollection = "synthetic", *, ratio: int = 50, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.choose = RandSynthetic(ratio)

    def randomize(self, data: Any | None = None) -> None:
        """Draw the trigger and one seed, always both."""
        super().randomize(None)
        self.choose.seed = draw_seed(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.choose(d[key], randomize=False)
        return d


RandSyntheticD = RandSyntheticDict = RandSyntheticd
