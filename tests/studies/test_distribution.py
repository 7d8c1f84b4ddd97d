from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies import distribution as distribution_module
from monai_diffaug.studies.distribution import fid, kid, latent_features
from monai_diffaug.studies.masked_images import free_places, real_lesions
from monai_diffaug.studies.painter import Painter


def gaussian(mean, root, n, seed):
    return np.random.RandomState(seed).standard_normal((n, len(mean))) @ np.asarray(root).T + mean


def with_exact_moments(mean, covariance, n, seed):
    """Samples whose mean and covariance are exactly the given ones."""
    x = np.random.RandomState(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_fid_of_gaussians_is_the_analytic_frechet_distance():
    mean, other = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    covariance, variances = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 9.0])
    distance = fid(with_exact_moments(mean, covariance, 50, 0), with_exact_moments(other, variances, 70, 1), extractor="none")
    assert distance.value == pytest.approx(5 + (1 - 2) ** 2 + (2 - 1) ** 2 + 0, abs=1e-9)


def test_fid_agrees_with_the_matrix_root_for_covariances_that_do_not_commute():
    from scipy.linalg import sqrtm

    a = np.array([[2.0, 0.9, 0.1], [0.9, 1.5, 0.3], [0.1, 0.3, 1.0]])
    b = np.array([[1.0, -0.4, 0.2], [-0.4, 3.0, 0.5], [0.2, 0.5, 0.8]])
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real
    zero = np.zeros(3)
    distance = fid(with_exact_moments(zero, a, 40, 0), with_exact_moments(zero, b, 40, 1), extractor="x")
    assert distance.value == pytest.approx(expected, abs=1e-8)


def test_fid_of_a_set_with_itself_is_zero_also_with_fewer_images_than_dimensions():
    x = np.random.RandomState(0).standard_normal((10, 30))
    assert fid(x, x, extractor="x").value == pytest.approx(0, abs=1e-6)


def test_kid_is_the_unbiased_estimate_written_out():
    rng = np.random.RandomState(0)
    x, y = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kid(x, y, extractor="x").value == pytest.approx(xx + yy - 2 * xy)


def test_kid_of_one_distribution_is_zero_on_average_whatever_n_and_grows_with_the_shift():
    root = np.eye(4)
    same = [kid(gaussian([0] * 4, root, 12, i), gaussian([0] * 4, root, 12, 1000 + i), extractor="x").value for i in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20 and min(same) < 0
    near, far = (kid(gaussian([0] * 4, root, 200, 0), gaussian([s] * 4, root, 200, 1), extractor="x").value for s in (0.3, 1.0))
    assert 0 < near < far


def test_subsets_give_a_spread_that_repeats():
    x, y = gaussian([0] * 3, np.eye(3), 60, 0), gaussian([0.5] * 3, np.eye(3), 60, 1)
    first, second = (kid(x, y, extractor="x", subset_size=20, subsets=30, seed=4) for _ in range(2))
    assert first == second and first.spread > 0
    assert first.value == pytest.approx(kid(x, y, extractor="x").value, abs=2 * first.spread)


def test_a_figure_without_an_extractor_is_refused():
    assert fid(np.eye(3), np.eye(3) * 2, extractor="my net, layer 4").extractor == "my net, layer 4"
    with pytest.raises(ValueError, match="name the feature extractor"):
        fid(np.eye(3), np.eye(3), extractor=" ")


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.zeros((4, 2)), np.zeros(3), np.full((3, 3), np.nan)])
def test_wrong_tables_are_refused(bad):
    with pytest.raises(ValueError, match=r"features"):
        kid(np.eye(3), bad, extractor="x")


def test_latent_features_tell_dark_from_bright_and_name_themselves(random_inpainter):
    crops = torch.cat([torch.full((3, 3, 64, 64), -0.8), torch.full((3, 3, 64, 64), 0.8)])
    features, name = latent_features(crops, random_inpainter, batch_size=4)
    assert features.shape == (6, 64) and random_inpainter in name
    assert np.abs(features[0] - features[2]).max() < 1e-4 < np.abs(features[0] - features[5]).max()


def test_the_reference_itself_is_nearest_to_the_reference(breast, monkeypatch):
    reference = real_lesions(breast, 6), free_places(breast, 6)
    monkeypatch.setattr(distribution_module, "painted_lesions", lambda *arguments: reference)
    figures = distribution_module.measure(breast, 6, Painter())
    assert set(figures) == {"painted lesions", "training lesions", "places before"}
    for itself, others in ((figures["painted lesions"][i], figures["places before"][i]) for i in (1, 3)):
        assert itself.metric == "FID" and abs(itself.value) < 1e-3 < others.value
    assert {row.extractor for row in figures["painted lesions"]} == {row.extractor for row in figures["training lesions"]}
    text = distribution_module.table(figures)
    assert text.count("painted lesions") == 2 and "VAE latents" in text and "MedSAM" in text
