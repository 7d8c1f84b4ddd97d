from __future__ import annotations

from monai_diffaug.studies.copy_guard import guard_table, measure_guard
from monai_diffaug.studies.regions import free_places, real_lesions


def test_copies_are_caught_and_what_is_new_mostly_is_not(real_data):
    known, held_out = real_lesions(40, split="train"), real_lesions(12)
    found = measure_guard(free_places(4), known, held_out, n_copies=2, quantile=0.1)
    assert found.painted == 0 and found.real <= 0.25 and 0.5 < found.limit < 1
    assert found.caught["in place"] == found.caught["exact"] == 1 and found.caught["turned by 10 degrees"] < 1
    assert (found.n_bank, found.n_painted, found.n_real, found.n_copies) == (40, 4, 12, 2)
    assert f"{'mirrored':<26}{found.caught['mirrored']:>6.2f}" in guard_table(found)


def test_without_copies_only_the_shares_are_measured(real_data):
    known = real_lesions(12, split="train")
    found = measure_guard(known[:3], known, known[:2], n_copies=0)
    assert found.caught == {} and found.painted == found.real == 1 and "copied" not in guard_table(found)
