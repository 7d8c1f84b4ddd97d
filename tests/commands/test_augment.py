from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.cli import main
from monai_diffaug.models import registry
from monai_diffaug.models.registry import tiny_folder
from tests.pretend_cuda import pretended_gpus

DATA = Path(os.environ.get("MONAI_DIFFAUG_DATA", Path(__file__).parents[3] / "shared/data")) / "volumes"
QUICK = ["--num-inference-steps", "2", "--guidance-scale", "1", "-q"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a small volume, a picture, their masks, and one of each wrong file."""
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.RandomState(0)
    affine = np.diag([-1.0, 1.5, 2, 1])
    volume = random.randint(-500, 900, (24, 20, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, affine), folder / "ct.nii.gz")
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:14, 7:13, 2:4] = 3
    nib.save(nib.Nifti1Image(mask, affine), folder / "mask.nii.gz")
    organs = np.zeros(volume.shape, np.uint8)
    organs[4:16, 5:10, 1:5] = 2
    organs[18:23, 12:16, 2:5] = 5
    nib.save(nib.Nifti1Image(organs, affine), folder / "organs.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "2": "liver", "7": "lung"}}))
    nib.save(nib.Nifti1Image(np.zeros_like(mask), affine), folder / "empty.nii.gz")
    nib.save(nib.Nifti1Image(-mask.astype(np.int16), affine), folder / "unknown.nii.gz")
    nib.save(nib.Nifti1Image(mask[:-2], affine), folder / "small.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), affine), folder / "time.nii.gz")
    bad = volume.astype(np.float32)
    bad[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(bad, affine), folder / "nan.nii.gz")
    whole = (folder / "ct.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(volume, affine), folder / "whole.nii")
    (folder / "cut.nii").write_bytes((folder / "whole.nii").read_bytes()[:900])
    (folder / "noise.nii.gz").write_bytes(b"no image")
    (folder / "noise.mha").write_bytes(b"no image")
    (folder / "noise.pth").write_bytes(b"no weights")
    (folder / "ct.xyz").write_bytes(b"")
    colour = random.randint(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(colour).save(folder / "a.png")
    Image.fromarray(colour).save(folder / "a.jpg")
    Image.fromarray(np.dstack([colour, colour[..., :1]])).save(folder / "rgba.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    spot = np.zeros((40, 50), np.uint8)
    spot[10:22, 14:30] = 255
    Image.fromarray(spot).save(folder / "spot.png")
    return folder


@pytest.fixture
def tiny_folder_copy(tmp_path: Path) -> Path:
    """The embedded inpainter in a new folder."""
    return Path(shutil.copytree(tiny_folder("inpainter"), tmp_path / "inpainter"))


WRONG = {
    "missing image": (["none.nii.gz", "--mask", "mask.nii.gz"], "no such file"),
    "missing mask": (["ct.nii.gz", "--mask", "none.nii.gz"], "no such file"),
    "other grid": (["ct.nii.gz", "--mask", "small.nii.gz"], "(22, 20, 6) is not on the grid of image ct.nii.gz (24, 20, 6); resample"),
    "label on other grid": (["ct.nii.gz", "--label", "small.nii.gz"], "(22, 20, 6)"),
    "empty mask": (["ct.nii.gz", "--mask", "empty.nii.gz"], "is empty"),
    "empty label": (["ct.nii.gz", "--label", "empty.nii.gz"], "is empty"),
    "label that says unknown alone": (["ct.nii.gz", "--label", "unknown.nii.gz"], "is empty: it has no voxels above 0"),
    "label value not there": (["ct.nii.gz", "--label", "mask.nii.gz", "--label-value", "7"], "no voxels of value 7"),
    "unknown plane": (["ct.nii.gz", "--mask", "mask.nii.gz", "--plane", "oblique"], "axial, coronal, sagittal"),
    "non-finite": (["nan.nii.gz", "--mask", "mask.nii.gz"], "1 voxels are not finite"),
    "truncated .nii.gz": (["cut.nii.gz", "--mask", "mask.nii.gz"], "corrupt or truncated"),
    "truncated .nii": (["cut.nii", "--mask", "mask.nii.gz"], "corrupt or truncated"),
    "corrupt .nii.gz": (["noise.nii.gz", "--mask", "mask.nii.gz"], "corrupt or truncated"),
    "corrupt .mha": (["noise.mha", "--mask", "mask.nii.gz"], "corrupt or truncated"),
    "truncated png": (["cut.png", "--mask", "spot.png"], "corrupt or truncated"),
    "RGBA": (["rgba.png", "--mask", "spot.png"], "mode RGBA"),
    "4-D": (["time.nii.gz", "--mask", "mask.nii.gz"], "a 4-D image of shape (4, 5, 6, 2)"),
    "box outside": (["a.png", "--box", "10,10,60,20"], "X runs 0 to 50, Y 0 to 40"),
    "box outside volume": (["ct.nii.gz", "--box", "0,0,10,21"], "outside the image"),
    "box upside down": (["a.png", "--box", "20,10,10,20"], "X0 < X1"),
    "box of three": (["a.png", "--box", "20,10,10"], "expected X0,Y0,X1,Y1"),
    "unknown suffix": (["ct.xyz", "--mask", "mask.nii.gz"], "unknown suffix"),
    "window": (["ct.nii.gz", "--mask", "mask.nii.gz", "--window", "100,100"], "LO < HI"),
    "window of words": (["ct.nii.gz", "--mask", "mask.nii.gz", "--window", "a,b"], "not a number"),
    "strength": (["ct.nii.gz", "--mask", "mask.nii.gz", "--strength", "1.5"], "(0, 1]"),
    "noise rho": (["ct.nii.gz", "--mask", "mask.nii.gz", "--noise-rho", "1.5"], "must be in [0, 1], got 1.5"),
    "no region": (["ct.nii.gz"], "one of the arguments --label --mask --box --place is required"),
    "several classes": (
        ["ct.nii.gz", "--label", "organs.nii.gz"],
        "has 2 classes: 2 liver (240 voxels), 5 (60 voxels); choose the one to repaint by --label-value",
    ),
    "most of the image": (["ct.nii.gz", "--mask", "organs.nii.gz"], "10% of the image would be repainted"),
    "organ without a label": (["ct.nii.gz", "--place", "liver"], "needs the organ map by --label"),
    "organ of another name": (["ct.nii.gz", "--label", "organs.nii.gz", "--place", "spleen"], "the names are liver, lung. Give a class id"),
    "organ that is not there": (["ct.nii.gz", "--label", "organs.nii.gz", "--place", "lung"], "no voxels of class 7; it has 2 liver (240"),
    "organ too small": (["ct.nii.gz", "--label", "organs.nii.gz", "--place", "5", "--size-mm", "30"], "no place for a lesion of 30 mm"),
    "tissue of several classes": (
        ["ct.nii.gz", "--label", "organs.nii.gz", "--place", "tissue"],
        "name that of the new lesion by --label-value",
    ),
    "place and mask": (["ct.nii.gz", "--mask", "mask.nii.gz", "--place", "tissue"], "not allowed with --mask or --box"),
    "size without a place": (["ct.nii.gz", "--mask", "mask.nii.gz", "--size-mm", "5"], "is the size of a placed lesion"),
    "size of nothing": (["ct.nii.gz", "--place", "tissue", "--size-mm", "0"], "above 0"),
    "shape without a box": (["a.png", "--mask", "spot.png", "--shape", "ellipse"], "fills a box"),
    "ellipse of a volume without slices": (
        ["ct.nii.gz", "--box", "1,1,9,9", "--shape", "ellipse"],
        "X0,Y0,X1,Y1,Z0,Z1, with slices Z0 to Z1 of 0 to 6",
    ),
    "ellipse beyond the slices": (["ct.nii.gz", "--box", "1,1,9,9,2,9", "--shape", "ellipse"], "slices 2 to 9 of --box are outside"),
    "box with slices for MedSAM": (["ct.nii.gz", "--box", "1,1,9,9,2,4"], "is for --shape ellipse"),
    "classes without names": (
        ["ct.nii.gz", "--label", "organs.nii.gz", "--place", "liver", "--classes", "none.json"],
        "--classes none.json: no such file",
    ),
    "least contrast": (["ct.nii.gz", "--mask", "mask.nii.gz", "--min-contrast=-1"], "--min-contrast must be >= 0"),
    "two regions": (["ct.nii.gz", "--mask", "mask.nii.gz", "--box", "1,1,2,2"], "not allowed with"),
    "seed": (["ct.nii.gz", "--mask", "mask.nii.gz", "--seed", "-1"], "must be in 0"),
    "unknown model": (["ct.nii.gz", "--mask", "mask.nii.gz", "--model", "nowhere"], "unknown inpainter source 'nowhere'"),
    "unknown medsam": (["a.png", "--box", "1,1,20,20", "--model", ".", "--medsam", "nowhere.pth"], "unknown medsam source"),
    "checkpoint of no weights": (
        ["a.png", "--box", "1,1,20,20", "--medsam", "noise.pth"],
        "medsam 'noise.pth' cannot be loaded: noise.pth",
    ),
    "more steps than timesteps": (["ct.nii.gz", "--mask", "mask.nii.gz", "--num-inference-steps=1001"], "must be in 1 to 1000, got 1001"),
    "device that is not there": (["ct.nii.gz", "--mask", "mask.nii.gz", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    "device of no kind": (["ct.nii.gz", "--mask", "mask.nii.gz", "--device", "gpu"], "--device gpu cannot be used here"),
    "no such option": (["ct.nii.gz", "--mask", "mask.nii.gz", "--colour"], "--colour"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_one_line_exit_code_2_and_no_file(case, inputs, capsys, monkeypatch):
    arguments, message = WRONG[case]
    monkeypatch.chdir(inputs)
    before = {p: p.read_bytes() for p in inputs.iterdir()}
    out = inputs.parent / "out"
    assert main(["augment", *arguments, "--prompt", "CT of brain", "--out", str(out)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert sum("error:" in line for line in lines) == 1 and lines[-1].startswith("monai-diffaug: error:")
    assert "Traceback" not in "".join(lines)
    assert not out.exists()
    assert {p: p.read_bytes() for p in inputs.iterdir()} == before


PROMPTS = {
    "neither": ([], "by --prompt"),
    "both": (["--prompt", "x", "--finding", "glioma"], "by --prompt"),
    "empty": (["--prompt", " "], "--prompt is empty"),
    "unknown": (
        ["--finding", "glyoma"],
        "'glyoma' is not in the vocabulary (monai-diffaug info --vocabulary); add --modality and --anatomy",
    ),
    "unknown of a modality": (
        ["--finding", "glyoma", "--modality", "MRI"],
        "did you mean 'glioma' (brain)? For a finding in your own words name",
    ),
    "of several modalities": (["--finding", "lung nodule"], "is listed for ct and x-ray; add --modality"),
    "unknown modality": (["--finding", "glioma", "--modality", "sonar"], "modality 'sonar' has no vocabulary; use one of ct"),
    "modality of a prompt": (["--prompt", "x", "--modality", "CT"], "belong to --finding"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_an_unclear_finding_is_refused_before_the_work_begins(case, inputs, capsys):
    arguments, message = PROMPTS[case]
    files = [str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--out", str(inputs.parent / "out")]
    assert main(["augment", *files, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_lesion_is_placed_in_an_organ_by_its_name_in_another_place_for_each_result(inputs, random_inpainter, capsys):
    out, image, organs = inputs.parent / "out", inputs / "ct.nii.gz", inputs / "organs.nii.gz"
    arguments = [
        "augment",
        str(image),
        "--label",
        str(organs),
        "--place",
        "Liver",
        "--size-mm",
        "3,6",
        "--finding",
        "liver metastasis, round",
    ]
    assert main([*arguments, "--out", str(out), "--model", random_inpainter, *QUICK, "--n", "3", "--preview"]) == 0
    before = nib.load(organs).get_fdata()
    masks = [nib.load(out / f"ct_diffaug_{k}_mask.nii.gz").get_fdata() > 0 for k in range(3)]
    for k, mask in enumerate(masks):
        assert mask.any() and (before[mask] == 2).all()
        label = nib.load(out / f"ct_diffaug_{k}_label.nii.gz").get_fdata()
        assert (label[mask] == 6).all() and np.array_equal(label[~mask], before[~mask])
        record = json.loads((out / f"ct_diffaug_{k}.json").read_text())
        assert record["record"]["prompt"] == "CT of abdomen, liver metastasis, round" and 0 < record["record"]["size_mm"] <= 8
        assert record["place"] == "Liver" and f"ct_diffaug_{k}_preview.png" in record["files"]
        assert Image.open(out / f"ct_diffaug_{k}_preview.png").height > 3 * 256
    assert not np.array_equal(masks[0], masks[1])
    assert main([*arguments, "--out", str(out), "--model", random_inpainter, *QUICK, "--n", "3", "--preview"]) == 0  # its own results


def test_an_ellipse_fills_a_box_of_a_picture_and_of_a_volume(inputs, random_inpainter):
    out = inputs.parent / "out"
    common = ["--shape", "ellipse", "--prompt", "x", "--out", str(out), "--model", random_inpainter, *QUICK]
    assert main(["augment", str(inputs / "a.png"), "--box", "10,20,30,30", *common]) == 0
    rows, columns = np.nonzero(np.asarray(Image.open(out / "a_diffaug_mask.png")))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 29, 10, 29) and 140 < len(rows) < 170
    assert main(["augment", str(inputs / "ct.nii.gz"), "--box", "4,6,12,14,1,5", *common]) == 0
    slices = np.nonzero(nib.load(out / "ct_diffaug_mask.nii.gz").get_fdata())[2]
    assert (slices.min(), slices.max()) == (1, 4)


def test_a_box_in_normal_tissue_offers_the_ellipse(inputs, random_inpainter, capsys, monkeypatch):
    from monai_diffaug.commands import edit_region

    monkeypatch.setattr(edit_region, "outline", lambda image, settings, **where: np.zeros((1, *image.shape), np.uint8))
    arguments = ["--box", "10,20,30,30", "--prompt", "x", "--out", str(inputs.parent / "out"), "--model", random_inpainter]
    assert main(["augment", str(inputs / "a.png"), *arguments]) == 2
    assert "use --shape ellipse or --place tissue" in capsys.readouterr().err


def test_more_than_a_tenth_of_the_image_is_repainted_with_yes_and_a_faint_lesion_is_told(inputs, random_inpainter, caplog):
    arguments = ["--mask", str(inputs / "organs.nii.gz"), "--prompt", "x", "--out", str(inputs.parent / "out"), "--model", random_inpainter]
    assert main(["augment", str(inputs / "ct.nii.gz"), *arguments, *QUICK, "--yes", "--min-contrast", "1e6"]) == 0
    assert "left unchanged, not visible: contrast" in caplog.text


def test_a_label_of_one_class_is_repainted_under_its_own_id(inputs, random_inpainter, monkeypatch):
    from monai_diffaug.commands import edit_region

    monkeypatch.setattr(edit_region, "outline", lambda image, settings, *, label, label_value: (label == label_value).astype(np.uint8))
    out = inputs.parent / "out"
    arguments = ["--label", str(inputs / "mask.nii.gz"), "--prompt", "x", "--out", str(out), "--model", random_inpainter, *QUICK]
    assert main(["augment", str(inputs / "ct.nii.gz"), *arguments]) == 0
    assert np.unique(nib.load(out / "ct_diffaug_label.nii.gz").get_fdata()).tolist() == [0, 3]


def test_an_out_folder_that_is_a_file_is_refused(inputs, capsys):
    out = inputs / "a.png"
    assert main(["augment", str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--prompt", "x", "--out", str(out)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_weights_that_are_cut_are_named_before_the_work_begins(inputs, tiny_folder_copy, capsys):
    weights = tiny_folder_copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    out, arguments = inputs.parent / "out", ["augment", str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--prompt", "CT"]
    assert main([*arguments, "--out", str(out), "--model", str(tiny_folder_copy)]) == 2
    message = capsys.readouterr().err
    assert f"inpainter '{tiny_folder_copy}' cannot be loaded: " in message and "; fetch the folder again" in message
    assert message.count("\n") == 1
    assert not out.exists()


def test_a_volume_is_edited_on_its_grid_and_nothing_outside_changes(inputs, random_inpainter):
    out = inputs.parent / "out"
    image, mask = inputs / "ct.nii.gz", inputs / "mask.nii.gz"
    arguments = ["augment", str(image), "--mask", str(mask), "--prompt", "CT of brain", "--out", str(out), "--model", random_inpainter]
    assert main([*arguments, *QUICK, "--n", "2", "--window=-200,600", "--seed", "5"]) == 0
    names = {p.name for p in out.iterdir()}
    assert names == {f"ct_diffaug_{k}{end}" for k in (0, 1) for end in (".nii.gz", "_mask.nii.gz", ".json")}
    before, first, second = (nib.load(p) for p in (image, out / "ct_diffaug_0.nii.gz", out / "ct_diffaug_1.nii.gz"))
    assert first.get_data_dtype() == np.int16 and np.array_equal(first.affine, before.affine)
    was, now = np.asarray(before.dataobj), np.asarray(first.dataobj)
    assert np.array_equal(was[..., [0, 1, 4, 5]], now[..., [0, 1, 4, 5]])
    inside = np.asarray(nib.load(mask).dataobj) > 0
    assert (was != now)[inside].mean() > 0.5
    assert not np.array_equal(now, np.asarray(second.dataobj))
    record = json.loads((out / "ct_diffaug_1.json").read_text())
    assert record["figures"]["changed_outside"] == 0 and record["record"]["n_slices"] == 2
    assert record["seed"] == 6 and record["settings"]["window"] == [-200.0, 600.0]


def test_the_same_seed_gives_the_same_file(inputs, random_inpainter):
    results = []
    for name in ("one", "two"):
        out = inputs.parent / name
        arguments = ["augment", str(inputs / "a.png"), "--mask", str(inputs / "spot.png"), "--prompt", "polyp", "--out", str(out)]
        assert main([*arguments, "--model", random_inpainter, *QUICK, "--seed", "3"]) == 0
        results.append(np.asarray(Image.open(out / "a_diffaug.png")))
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], np.asarray(Image.open(inputs / "a.png")))


def test_a_jpeg_comes_back_as_png_with_the_decoded_pixels_outside(inputs, random_inpainter):
    out = inputs.parent / "out"
    arguments = ["augment", str(inputs / "a.jpg"), "--mask", str(inputs / "spot.png"), "--prompt", "polyp", "--out", str(out)]
    assert main([*arguments, "--model", random_inpainter, *QUICK]) == 0
    was, now = np.asarray(Image.open(inputs / "a.jpg")), np.asarray(Image.open(out / "a_diffaug.png"))
    assert np.array_equal(was[36:], now[36:]) and not np.array_equal(was, now)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_formats_come_back_in_their_format(inputs, random_inpainter, suffix):
    out = inputs.parent / "out"
    for name in ("ct", "mask"):
        itk.imwrite(itk.imread(str(inputs / f"{name}.nii.gz")), str(inputs / f"{name}{suffix}"))
    image, mask = inputs / f"ct{suffix}", inputs / f"mask{suffix}"
    arguments = ["augment", str(image), "--mask", str(mask), "--prompt", "CT", "--out", str(out), "--model", random_inpainter]
    assert main([*arguments, *QUICK]) == 0
    was, now = itk.imread(str(image)), itk.imread(str(out / f"ct_diffaug{suffix}"))
    assert itk.array_from_image(now).dtype == np.int16
    assert np.allclose(now.GetOrigin(), was.GetOrigin()) and np.allclose(now.GetSpacing(), was.GetSpacing())
    assert np.array_equal(itk.array_from_image(now)[[0, 1, 4, 5]], itk.array_from_image(was)[[0, 1, 4, 5]])


def test_a_real_volume_stored_psr_is_edited(tmp_path, random_inpainter):
    image, cord = DATA / "spine_t2.nii.gz", DATA / "spine_t2_cord.nii.gz"
    if not image.exists():
        pytest.skip(f"{image} is not here; set MONAI_DIFFAUG_DATA")
    small = np.asarray(nib.load(cord).dataobj).copy()
    small[:, :20] = 0
    small[:, 23:] = 0
    nib.save(nib.Nifti1Image(small, nib.load(image).affine), tmp_path / "mask.nii.gz")
    arguments = ["augment", str(image), "--mask", str(tmp_path / "mask.nii.gz"), "--prompt", "MRI of spine", "--out", str(tmp_path)]
    assert main([*arguments, "--model", random_inpainter, *QUICK]) == 0
    record = json.loads((tmp_path / "spine_t2_diffaug.json").read_text())
    assert record["record"]["n_slices"] == 3 and record["figures"]["changed_outside"] == 0
    now, was = nib.load(tmp_path / "spine_t2_diffaug.nii.gz"), nib.load(image)
    assert nib.aff2axcodes(now.affine) == ("P", "S", "R")
    differs = (np.asarray(now.dataobj) != np.asarray(was.dataobj)).any(axis=(0, 2))
    assert set(np.flatnonzero(differs)) <= {20, 21, 22} and differs.any()


def test_an_interrupted_write_leaves_no_half_file(inputs, random_inpainter, monkeypatch, capsys):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", stop)
    out = inputs.parent / "out"
    arguments = ["augment", str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--prompt", "CT", "--out", str(out)]
    assert main([*arguments, "--model", random_inpainter, *QUICK]) == 130
    assert list(out.iterdir()) == []


def test_a_box_on_a_picture_is_outlined_by_medsam_and_the_outline_alone_changes(inputs, random_inpainter):
    picture = np.full((64, 64), 40, np.uint8)
    rows, columns = np.mgrid[:64, :64]
    picture[(rows - 30) ** 2 + (columns - 34) ** 2 < 12**2] = 200
    Image.fromarray(picture).save(inputs / "disc.png")
    out = inputs.parent / "out"
    arguments = ["augment", str(inputs / "disc.png"), "--box", "20,16,48,44", "--prompt", "polyp", "--out", str(out), "--yes"]
    assert main([*arguments, "--model", random_inpainter, *QUICK, "--validate"]) == 0
    mask = np.asarray(Image.open(out / "disc_diffaug_mask.png")) > 0
    disc = picture > 100
    assert 2 * (mask & disc).sum() / (mask.sum() + disc.sum()) > 0.7
    now = np.asarray(Image.open(out / "disc_diffaug.png"))
    assert np.array_equal(now[:8], picture[:8]) and (now != picture)[mask].mean() > 0.5
    record = json.loads((out / "disc_diffaug.json").read_text())
    assert 0 <= record["record"]["score"] <= 1 and isinstance(record["record"]["accepted"], bool)
    assert record["box"] == [20.0, 16.0, 48.0, 44.0] and record["figures"]["changed_outside"] == 0


def test_a_result_that_the_validator_rejects_is_written_with_a_warning(inputs, random_inpainter, caplog):
    out = inputs.parent / "out"
    arguments = ["augment", str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--prompt", "CT", "--out", str(out)]
    assert main([*arguments, "--model", random_inpainter, *QUICK, "--validate"]) == 0
    record = json.loads((out / "ct_diffaug.json").read_text())["record"]
    assert record["applied"] and not record["accepted"]
    assert f"ct_diffaug: written, but the validator rejects it: {record['reason']}" in caplog.text


def test_a_dicom_series_is_edited_in_hu_and_written_as_nifti(tmp_path, random_inpainter):
    from monai_diffaug.files.image_file import read_picture

    series = DATA / "ct_dicom_series"
    if not series.exists():
        pytest.skip(f"{series} is not here; set MONAI_DIFFAUG_DATA")
    picture = read_picture(series)
    mask = np.zeros(picture.shape, np.uint8)
    rows, columns, depth = (n // 2 for n in picture.shape)
    mask[rows - 20 : rows + 20, columns - 20 : columns + 20, depth : depth + 2] = 1
    nib.save(nib.Nifti1Image(mask, picture.affine), tmp_path / "mask.nii.gz")
    arguments = ["augment", str(series), "--mask", str(tmp_path / "mask.nii.gz"), "--prompt", "CT of abdomen"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--model", random_inpainter, *QUICK, "--window=-160,240"]) == 0
    record = json.loads((tmp_path / "out/ct_dicom_series_diffaug.json").read_text())
    assert record["record"]["n_slices"] == 2 and record["figures"]["changed_outside"] == 0
    now = np.asarray(nib.load(tmp_path / "out/ct_dicom_series_diffaug.nii.gz").dataobj)
    untouched = np.delete(now, (depth, depth + 1), axis=2)
    assert np.array_equal(untouched, np.delete(picture.values[0], (depth, depth + 1), axis=2))
    assert now[mask > 0].min() >= -200 and now[mask > 0].max() <= 280


@pytest.mark.slow
def test_models_run_on_the_gpu_where_there_is_one_unless_told_otherwise(inputs, tmp_path):
    def edited(name: str, *options: str) -> tuple[str, np.ndarray]:
        out = tmp_path / name
        files = [str(inputs / "a.png"), "--mask", str(inputs / "spot.png"), "--out", str(out)]
        assert main(["augment", *files, "--prompt", "a cyst", *QUICK, "--validate", *options]) == 0
        return json.loads((out / "a_diffaug.json").read_text())["settings"]["device"], np.asarray(Image.open(out / "a_diffaug.png"))

    spec = registry.spec_of("inpainter", "tiny")
    device, on_cpu = edited("cpu", "--device", "cpu")
    assert device == "cpu"
    with pretended_gpus(2):
        try:
            assert edited("default")[0] == "cuda"
            chosen, on_gpu = edited("second", "--device", "cuda:1")
            assert registry.load_count(spec, "cuda:0") == registry.load_count(spec, "cuda:1") == 1
        finally:
            registry.clear()
    assert chosen == "cuda:1" and np.abs(on_gpu.astype(int) - on_cpu).max() <= 1


def test_slices_that_share_their_noise_are_told_to(inputs, tmp_path):
    def edited(*options: str) -> np.ndarray:
        files = [str(inputs / "ct.nii.gz"), "--mask", str(inputs / "mask.nii.gz"), "--out", str(tmp_path)]
        assert main(["augment", *files, "--prompt", "a cyst", *QUICK, *options]) == 0
        return np.asarray(nib.load(tmp_path / "ct_diffaug.nii.gz").dataobj)

    alone, together = edited(), edited("--noise-rho", "1")
    assert not np.array_equal(alone, together) and np.array_equal(alone, edited("--noise-rho", "0"))
