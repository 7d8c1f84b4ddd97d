from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from monai_diffaug.generate.audit_copies import near_copies, same_bytes
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.source_images import read_sources
from tests.generate.run_folders import Maker, load, save


def texture(seed: int) -> np.ndarray:
    values = gaussian_filter(np.random.RandomState(seed).standard_normal((64, 64)), 1.5)
    return np.clip(120 + 60 * values / values.std(), 0, 255).astype(np.uint8)


@pytest.fixture
def maker(tmp_path) -> Maker:
    """Eight images with textured lesions of 20 x 20 pixels; the new lesions are at another place."""
    maker = Maker(tmp_path, shape=(64, 64))
    label = np.zeros((64, 64), np.uint8)
    label[5:25, 5:25] = 1
    for k in range(8):
        maker.source(f"s{k}", group=str(k))
        save(texture(k), tmp_path / maker.entries[k]["image"])
        save(label, tmp_path / maker.entries[k]["label"])
    return maker


def paint(maker: Maker, source: int, patch: np.ndarray, **values) -> str:
    record = maker.result(maker.entries[source]["image"], len(maker.records), **values)
    place = maker.run / "results" / record.job
    mask = np.zeros((64, 64), np.uint8)
    mask[35:55, 35:55] = 1
    image = load(maker.folder / maker.entries[source]["image"]).copy()
    image[35:55, 35:55] = patch
    save(image, place / "image.png")
    save(mask, place / "mask.png")
    save(np.maximum(mask, load(maker.folder / maker.entries[source]["label"])), place / "label.png")
    return record.job


def check(maker: Maker):
    maker.finish()
    sources = {source.id: source for source in read_sources(maker.datalist)}
    return near_copies(read_run(maker.run), sources)


def test_a_pasted_lesion_of_another_patient_is_named_and_a_new_one_is_not(maker):
    paint(maker, 0, texture(100)[:20, :20])
    copy = paint(maker, 1, texture(6)[5:25, 5:25])
    found = check(maker)
    assert [(fault.kind, fault.where) for fault in found.faults] == [("copy", copy)]
    assert found.faults[0].text.startswith("near-copy: correlation 0.9") and found.faults[0].text.endswith("a lesion in images/s6.png")
    assert (found.compared, found.similar, found.by_design) == (2, (), 0)


def test_the_declared_donor_and_the_own_source_are_by_design(maker):
    paint(maker, 1, texture(6)[5:25, 5:25], donor="images/s6.png#1")
    paint(maker, 2, texture(2)[5:25, 5:25])
    found = check(maker)
    assert (found.faults, found.compared, found.by_design) == ((), 2, 2)


def test_controls_are_not_compared_and_lesions_of_one_group_cannot_be(maker):
    paint(maker, 1, texture(6)[5:25, 5:25], kind="control", label_value=0)
    assert check(maker).note == "no painted lesion to compare"
    paint(maker, 1, texture(6)[5:25, 5:25])
    for entry in maker.entries:
        entry["group"] = "one"
    assert "one group" in check(maker).note


def test_two_results_with_the_same_bytes_are_named(maker):
    first = maker.result("images/s0.png")
    second = maker.result("images/s0.png", 1, sha256=first.sha256)
    assert [(fault.where, fault.text) for fault in same_bytes(maker.records)] == [(second.job, f"the image is that of {first.job}")]
