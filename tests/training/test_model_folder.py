from __future__ import annotations

from monai_diffaug.training.model_folder import replace_parts


def test_parts_replace_what_has_their_name_and_a_linked_folder_keeps_its_files(tmp_path):
    written, folder, elsewhere = tmp_path / "part", tmp_path / "out", tmp_path / "elsewhere"
    for new in (written / "unet", written / "vae", folder / "text", written / "text", elsewhere):
        new.mkdir(parents=True)
    for name in ("unet", "vae", "text"):
        (written / name / "new").touch()
    (folder / "unet").touch()
    (folder / "vae").symlink_to(elsewhere)
    (elsewhere / "kept").touch()
    (folder / "text" / "old").touch()
    (folder / "other").touch()
    replace_parts(written, folder)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == [
        "other", "text", "text/new", "unet", "unet/new", "vae", "vae/new",
    ]  # fmt: skip
    assert (elsewhere / "kept").exists() and not written.exists()
