from __future__ import annotations

from monai_diffaug.studies.copies import guard_table, measure_guard
from monai_diffaug.studies.masked_images import free_places, real_lesions


def test_copies_are_caught_and_what_is_new_mostly_is_not(breast):
    training, held_out, places = real_lesions(breast, 40, section="training"), real_lesions(breast, 12), free_places(breast, 4)
    figures = measure_guard(places, training, held_out, places[:2], quantile=0.1)
    assert figures.painted == 0 and figures.real <= 0.25 and 0.5 < figures.limit < 1
    assert figures.caught["in place"] == figures.caught["exact"] == 1 and figures.caught["turned by 10 degrees"] < 1
    assert (figures.n_bank, figures.n_painted, figures.n_real, figures.n_copies) == (40, 4, 12, 2)
    assert f"{'mirrored':<26}{figures.caught['mirrored']:>6.2f}" in guard_table(figures)


def test_without_copies_only_the_shares_are_measured(breast):
    training = real_lesions(breast, 12, section="training")
    figures = measure_guard(training[:3], training, training[:2], [])
    assert figures.caught == {} and figures.painted == figures.real == 1 and "copied" not in guard_table(figures)
