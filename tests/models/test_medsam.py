"""MedSAM: the steps of the official inference, sources and their errors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.medsam import TINY_CONFIG, MedSAM, box_coverage, build_sam, load_medsam, save_sam
from monai_diffaug.models.registry import ModelSpec, spec_of, tiny_folder
from tests.models.sam_of_transformers import sam_of_transformers

SMALL_CONFIG = {
    **TINY_CONFIG,
    "image_size": 64,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 4,
    "prompt_dim": 32,
    "mask_in_chans": 16,
    "decoder_heads": 8,
    "decoder_mlp_dim": 32,
    "box_as_mask": False,
}
needs_weights = pytest.mark.skipif(not tiny_folder("medsam").is_dir(), reason="the embedded MedSAM is not in this tree")


def randomised(sam: Any, seed: int = 0) -> Any:
    """Random positions: relative positions start at zero, with which a mistake has no effect."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                value.normal_(0, 0.2)
    return sam.eval()


def official_mask(sam: Any, image_hw3: np.ndarray, box: tuple[float, ...], masks: torch.Tensor | None = None) -> np.ndarray:
    """MedSAM_Inference.py step by step, with scikit-image, in floating point."""
    from skimage.transform import resize

    size = sam.image_encoder.img_size
    height, width = image_hw3.shape[:2]
    image = resize(image_hw3, (size, size), order=3, preserve_range=True, anti_aliasing=True)
    image = (image - image.min()) / np.clip(image.max() - image.min(), 1e-8, None)
    tensor = torch.tensor(image).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        embedding = sam.image_encoder(tensor)
        scaled = np.array([box]) / np.array([width, height, width, height]) * size
        sparse, dense = sam.prompt_encoder(points=None, boxes=torch.as_tensor(scaled, dtype=torch.float)[:, None], masks=masks)
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        probability = F.interpolate(torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False)
    return (probability[0, 0] > 0.5).numpy()


@needs_weights
@pytest.mark.parametrize("channels", [1, 3])
def test_the_embedded_model_follows_the_official_inference_steps(channels: int) -> None:
    medsam = load_medsam(ModelSpec("medsam"))
    rng = np.random.RandomState(2)
    image = rng.rand(90, 140, channels) * 40
    image[30:60, 50:100] += 100
    box = (45.0, 25.0, 108.0, 66.0)
    scaled = torch.tensor([box]) / torch.tensor([140, 90, 140, 90.0]) * 256
    expected = official_mask(medsam.sam, np.repeat(image, 3 // channels, -1), box, box_coverage(scaled, 256, 128))
    embedding = medsam.encode(torch.from_numpy(image).permute(2, 0, 1)[None])
    masks, predicted_iou = medsam.decode(embedding, torch.tensor([box]), (90, 140))
    assert expected.any() and not expected.all()
    assert (masks[0].numpy() != expected).mean() < 1e-3
    assert predicted_iou.shape == (1,)


@pytest.mark.slow
def test_vit_b_at_1024_follows_the_official_inference_steps() -> None:
    from segment_anything import sam_model_registry

    sam = randomised(sam_model_registry["vit_b"]())
    image = np.random.RandomState(3).rand(60, 80, 1) * 255
    image[20:40, 20:60] += 200
    encode, first = sam.image_encoder.forward, []

    def encode_once(pixels: torch.Tensor) -> torch.Tensor:
        """The encoder takes ten seconds: it runs for the official steps only; the second call must have the same input."""
        if not first:
            first.extend([pixels, encode(pixels)])
        torch.testing.assert_close(pixels, first[0], atol=1e-5, rtol=0)
        return first[1]

    sam.image_encoder.forward = encode_once
    expected = official_mask(sam, np.repeat(image, 3, -1), (15, 12, 66, 48))
    medsam = MedSAM(sam)
    masks, _ = medsam.decode(medsam.encode(torch.from_numpy(image).permute(2, 0, 1)[None]), torch.tensor([[15.0, 12, 66, 48]]), (60, 80))
    assert expected.any() and not expected.all()
    assert np.array_equal(masks[0].numpy(), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pth_checkpoint_gives_the_masks_of_the_model_it_was_saved_from(tmp_path: Path, nested: bool) -> None:
    sam = randomised(build_sam(SMALL_CONFIG))
    weights = sam.state_dict()
    torch.save({"model": weights, "epoch": 3} if nested else weights, tmp_path / "a.pth")
    loaded = load_medsam(ModelSpec("medsam", str(tmp_path / "a.pth")))
    slices = torch.rand(2, 1, 50, 40)
    boxes = torch.tensor([[3.0, 4, 30, 40], [0, 0, 40, 50]])
    original = MedSAM(sam)
    embeddings = original.encode(slices)
    assert torch.equal(embeddings, loaded.encode(slices))
    assert torch.equal(original.decode(embeddings, boxes, (50, 40))[1], loaded.decode(embeddings, boxes, (50, 40))[1])


@pytest.mark.parametrize("pickled", [False, True])
def test_the_folder_of_a_hub_repository_is_loaded_like_the_repository(tmp_path: Path, pickled: bool) -> None:
    theirs = sam_of_transformers()
    theirs.save_pretrained(tmp_path)
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_medsam(ModelSpec("medsam", str(tmp_path)))
    assert torch.equal(loaded.sam.image_encoder.pos_embed, theirs.vision_encoder.pos_embed)
    assert not loaded.box_as_mask and loaded.image_size == 64


def test_a_batch_of_slices_equals_single_slices() -> None:
    medsam = MedSAM(randomised(build_sam(SMALL_CONFIG)))
    slices = torch.rand(5, 3, 30, 44)
    together = medsam.encode(slices, batch_size=4)
    alone = torch.cat([medsam.encode(s[None]) for s in slices])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_masks_do_not_depend_on_the_intensity_unit() -> None:
    medsam = MedSAM(randomised(build_sam(SMALL_CONFIG)))
    slices = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(medsam.encode(slices), medsam.encode(slices * 2000 - 1000), atol=1e-3, rtol=1e-3)


def test_a_constant_slice_gives_finite_embeddings() -> None:
    medsam = MedSAM(randomised(build_sam(SMALL_CONFIG)))
    assert torch.isfinite(medsam.encode(torch.full((1, 1, 32, 32), 7.0))).all()


def test_box_coverage_is_the_share_of_each_cell() -> None:
    coverage = (box_coverage(torch.tensor([[2.0, 4, 7, 8]]), 16, 8)[0, 0] + 1) / 2
    assert coverage.sum() * 4 == 20
    assert coverage[2, 1] == 1 and coverage[2, 3] == 0.5 and coverage[1, 1] == 0


def test_a_missing_checkpoint_names_the_file_and_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"nowhere\.pth.*curl -L -o .*nowhere\.pth https://"):
        load_medsam(ModelSpec("medsam", str(tmp_path / "nowhere.pth")))


def test_a_hub_id_that_is_not_in_the_cache_names_the_command_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelSourceError, match="hf download no-one/nothing --revision abc"):
        load_medsam(ModelSpec("medsam", "no-one/nothing@abc"))


def test_a_hub_id_is_loaded_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    sam, requests = randomised(build_sam(SMALL_CONFIG)), []
    torch.save(sam.state_dict(), tmp_path / "medsam_vit_b.pth")

    def download(repository: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        requests.append((repository, revision, allow_patterns[-1], local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    loaded = load_medsam(ModelSpec("medsam", "org/name@abc"))
    assert requests == [("org/name", "abc", name, False) for name in ("model.safetensors", "medsam_vit_b.pth")]
    assert torch.equal(loaded.sam.image_encoder.pos_embed, sam.image_encoder.pos_embed)


def test_a_truncated_checkpoint_is_refused_in_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "short.pth"
    torch.save(build_sam(SMALL_CONFIG).state_dict(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"short\.pth is no readable checkpoint"):
        load_medsam(ModelSpec("medsam", str(file)))


def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "code.pth", tmp_path / "trace"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    file.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="pickle with code"):
        load_medsam(ModelSpec("medsam", str(file)))
    torch.save({"weight": Code()}, file)
    with pytest.raises(ValueError, match="pickle with code"):
        load_medsam(ModelSpec("medsam", str(file)))
    assert not trace.exists()


def test_a_live_sam_is_copied_and_the_original_stays_trainable() -> None:
    sam = build_sam(SMALL_CONFIG)
    medsam = load_medsam(spec_of("medsam", sam))
    assert medsam.sam is not sam and all(p.requires_grad for p in sam.mask_decoder.parameters())
    assert not any(p.requires_grad for p in medsam.sam.parameters())
    with pytest.raises(ValueError, match="got Linear"):
        load_medsam(spec_of("medsam", torch.nn.Linear(1, 1)))


def test_a_saved_folder_loads_in_half_precision_and_runs_in_float32(tmp_path: Path) -> None:
    sam = randomised(build_sam(SMALL_CONFIG))
    save_sam(sam, SMALL_CONFIG, tmp_path / "folder")
    loaded = load_medsam(ModelSpec("medsam", str(tmp_path / "folder")))
    assert loaded.sam.image_encoder.pos_embed.dtype == torch.float32
    torch.testing.assert_close(loaded.sam.image_encoder.pos_embed, sam.image_encoder.pos_embed, atol=1e-3, rtol=1e-3)
    (tmp_path / "folder" / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match=r"model\.safetensors is missing"):
        load_medsam(ModelSpec("medsam", str(tmp_path / "folder")))


def test_a_lower_precision_encoder_still_decodes_in_float32() -> None:
    medsam = MedSAM(randomised(build_sam(SMALL_CONFIG)), dtype=torch.bfloat16)
    embedding = medsam.encode(torch.rand(1, 1, 32, 32))
    assert embedding.dtype == torch.float32
    assert medsam.decode(embedding, torch.tensor([[2.0, 2, 20, 20]]), (32, 32))[1].dtype == torch.float32


def test_two_channels_and_a_wrong_number_of_boxes_are_refused() -> None:
    medsam = MedSAM(build_sam(SMALL_CONFIG))
    with pytest.raises(ValueError, match="1 or 3"):
        medsam.encode(torch.rand(1, 2, 32, 32))
    with pytest.raises(ValueError, match="one box per embedding"):
        medsam.decode(medsam.encode(torch.rand(2, 1, 32, 32)), torch.zeros(1, 4), (32, 32))


@needs_weights
def test_the_embedded_weights_are_below_six_megabytes() -> None:
    assert (tiny_folder("medsam") / "model.safetensors").stat().st_size < 6e6
