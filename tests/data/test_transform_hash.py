from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged, Orientationd, RandFlipd, RandRotated, Spacingd

from monai_diffaug.data.transform_hash import transform_hashing
from monai_diffaug.edit.validation_options import Dynamic
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.soft_mask import SoftMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

BUILD = """
from monai.transforms import *
from monai_diffaug import *
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.data.transform_hash import transform_hashing
transforms = [
    LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"]), Orientationd("image", axcodes="RAS"),
    Spacingd("image", pixdim=(1.0, 1.0, 2.0)), Lambdad("image", lambda x: x * 2), RandRotated("image", range_x=0.3),
    CachedRandomd(MedSAMMaskd("image", label_key="label", jitter_px=5), seed=1, id_key="id"),
    CachedRandomd(Compose([RandFlipd("image", prob=0.5), DiffusionLocalInpaintd("image", window=(-160, 240))]), seed=2, id_key="id"),
    TextPromptd("prompt", modality="MRI", anatomy="brain", finding="glioma"), SoftMaskd("mask"),
    LatentValidated("image", inpaint=DiffusionLocalInpaintd("image"), on_reject="retry", dynamic=Dynamic()),
]
"""


@pytest.mark.slow  # starts another process that imports torch
def test_another_process_with_other_string_hashes_gives_the_same_hash() -> None:
    here: dict[str, object] = {"__name__": "__main__"}
    exec(BUILD, here)
    program, seeded = BUILD + "print(transform_hashing(transforms).decode())", {**os.environ, "PYTHONHASHSEED": "2"}
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=seeded).stdout.strip()
    assert printed.encode() == transform_hashing(here["transforms"]) and len(printed) == 64


def volume() -> dict[str, object]:
    label = torch.zeros(1, 32, 32, 3)
    label[:, 10:20, 10:20, 1] = 1
    return {"image": torch.rand(1, 32, 32, 3), "label": label, "mask": label.clone(), "prompt": "MRI of brain, glioma", "id": "a"}


OURS = {
    "medsam": lambda model: MedSAMMaskd("image", label_key="label"),
    "prompt": lambda model: TextPromptd("prompt", modality="MRI"),
    "inpaint": lambda model: DiffusionLocalInpaintd("image", model=model, num_inference_steps=1),
    "soft": lambda model: SoftMaskd("mask"),
    "validate": lambda model: LatentValidated(
        "image", inpaint=DiffusionLocalInpaintd("image", model=model, num_inference_steps=1), dynamic=Dynamic(), on_reject="flag"
    ),
    "cached": lambda model: CachedRandomd(DiffusionLocalInpaintd("image", model=model, num_inference_steps=1), seed=1, id_key="id"),
}


@pytest.mark.parametrize("name", OURS)
def test_a_hash_is_the_same_before_and_after_use(name: str, random_inpainter: str) -> None:
    transform = OURS[name](random_inpainter)
    before = transform_hashing([transform])
    for seed in (1, 2):
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed)
        transform(volume())
    assert transform_hashing([transform]) == before == transform_hashing([OURS[name](random_inpainter)])


def test_monai_readers_keep_their_hash_after_reading(tmp_path: Path) -> None:
    import nibabel as nib

    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.rand(6, 7, 8).astype(np.float32), np.diag([1, 2, 3, 1])), path)
    transform = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS"), Spacingd("image", (1, 1, 1))])
    before = transform_hashing(transform.transforms)
    transform({"image": str(path)})
    assert transform_hashing(transform.transforms) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MedSAMMaskd("image", label_key="label"), MedSAMMaskd("image", label_key="label", jitter_px=5)),
        (MedSAMMaskd("image", label_key="label"), MedSAMMaskd("image", label_key="label", window=(0.0, 1.0))),
        (DiffusionLocalInpaintd("image"), DiffusionLocalInpaintd("image", strength=0.5)),
        (DiffusionLocalInpaintd("image"), DiffusionLocalInpaintd("image", model="org/name@rev")),
        (DiffusionLocalInpaintd("image"), DiffusionLocalInpaintd("image", prob=0.5)),
        (TextPromptd("prompt", modality="MRI", anatomy="brain"), TextPromptd("prompt", modality="MRI", anatomy="prostate")),
        (LatentValidated("image"), LatentValidated("image", min_dice=0.6)),
        (RandFlipd("image", prob=0.5), CachedRandomd(RandFlipd("image", prob=0.5), seed=1, id_key="id")),
        (CachedRandomd(RandFlipd("image"), seed=1, id_key="id"), CachedRandomd(RandFlipd("image"), seed=2, id_key="id")),
        (RandRotated("image", range_x=0.1), RandRotated("image", range_x=0.2)),
        (partial(np.clip, a_min=0), partial(np.clip, a_min=1)),
        (lambda x: x + 1, lambda x: x + 2),
        ({1: 2}.get, {1: 3}.get),
        ("ct".join, "mr".join),
        (torch.zeros(2).add, torch.ones(2).add),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        (np.zeros(3), np.zeros(3, np.float32)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (1, True),
    ],
)
def test_another_option_gives_another_hash(one: object, other: object) -> None:
    assert transform_hashing([one]) != transform_hashing([other])


def test_the_order_of_a_mapping_and_of_a_set_does_not_matter() -> None:
    assert transform_hashing({"a": 1, "b": {"x", "y"}}) == transform_hashing({"b": {"y", "x"}, "a": 1})


def test_functions_of_a_library_are_hashed_by_name() -> None:
    functions = [len, np.sqrt, np.linalg.norm, torch.sigmoid, torch.tanh, torch.nn.functional.relu, torch.Tensor.float, str.upper]
    assert len({transform_hashing(each) for each in functions}) == len(functions)
    assert transform_hashing(torch.sigmoid) == transform_hashing(torch.sigmoid)


def closing_over(value: object):
    return lambda x: (x, value)


def test_a_function_is_hashed_with_its_closure() -> None:
    assert transform_hashing(closing_over(1)) == transform_hashing(closing_over(1)) != transform_hashing(closing_over(2))


def test_live_networks_are_hashed_by_their_weights() -> None:
    def validator(seed: int) -> LatentValidated:
        torch.manual_seed(seed)
        return LatentValidated("image", model=torch.nn.Conv2d(1, 1, 3))

    assert transform_hashing(validator(1)) == transform_hashing(validator(1)) != transform_hashing(validator(2))


def test_a_live_pipeline_keeps_its_hash_after_use(random_inpainter: str) -> None:
    from monai_diffaug.models.inpainter import load_inpainter
    from monai_diffaug.models.registry import ModelSpec

    live = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    transform = DiffusionLocalInpaintd("image", model=live, num_inference_steps=1)
    before = transform_hashing(transform)
    transform(volume())
    assert transform_hashing(transform) == before


def test_replaced_weights_in_a_folder_change_the_hash(tmp_path: Path) -> None:
    (tmp_path / "unet.safetensors").write_bytes(b"old")
    before = transform_hashing(DiffusionLocalInpaintd("image", model=str(tmp_path)))
    assert transform_hashing(DiffusionLocalInpaintd("image", model=str(tmp_path))) == before
    (tmp_path / "unet.safetensors").write_bytes(b"new weights")
    assert transform_hashing(DiffusionLocalInpaintd("image", model=str(tmp_path))) != before


def test_a_value_without_stable_content_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"transforms\[0\]\['a'\] is a generator"):
        transform_hashing([{"a": (x for x in ())}])


class Holder:
    def __init__(self) -> None:
        self.me = self


def test_an_object_that_references_itself_is_hashed() -> None:
    assert transform_hashing(Holder()) == transform_hashing(Holder())


def test_a_persistent_dataset_reuses_its_files_and_not_those_of_other_options(tmp_path: Path) -> None:
    def dataset(jitter_px: float) -> PersistentDataset:
        mask = CachedRandomd(MedSAMMaskd("image", label_key="label", jitter_px=jitter_px), seed=1, id_key="id", draws=1)
        transform = Compose([EnsureTyped(["image", "label"]), mask])
        return PersistentDataset([volume()], transform, tmp_path, hash_func=lambda item: b"item", hash_transform=transform_hashing)

    first = dataset(5)[0]["mask"]
    assert len(list(tmp_path.glob("*.pt"))) == 1
    second = dataset(5)
    assert torch.equal(second[0]["mask"], first) and len(list(tmp_path.glob("*.pt"))) == 1
    dataset(9)[0]
    assert len(list(tmp_path.glob("*.pt"))) == 2
