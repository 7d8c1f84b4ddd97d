from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monai_diffaug.commands.cli import main
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.semantic_controller import SemanticModel, build_semantic_model, save_semantic_controller
from monai_diffaug.studies.masked_images import free_places, real_lesions
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.semantic_features import (
    CONTROLLER,
    COPY,
    MEAN,
    VISIBLE,
    distillation_errors,
    encoded,
    measure_repainting,
    prompt_of,
)


@pytest.fixture(scope="module")
def models(random_inpainter) -> tuple[Inpainter, SemanticModel]:
    inpainter = shared_model(spec_of("inpainter", random_inpainter), "cpu", load_inpainter)
    return inpainter, build_semantic_model(inpainter)


def test_an_untrained_controller_errs_as_a_copy_and_a_perfect_one_not_at_all(breast, models):
    inpainter, model = models
    batch = encoded(inpainter, model, real_lesions(breast, 2))
    mean = batch.whole.mean(0)
    errors = distillation_errors(inpainter, model, batch, mean)
    assert set(errors) == {CONTROLLER, COPY, MEAN, VISIBLE}
    assert np.allclose(errors[CONTROLLER], errors[COPY]) and (errors[COPY] > 0).all()
    assert not np.allclose(errors[MEAN], errors[COPY])

    class Perfect(torch.nn.Module):
        def forward(self, patches, pooled, text, hidden):
            return batch.whole[:, :-1], batch.whole[:, -1]

    perfect = build_semantic_model(inpainter)
    perfect.parts["controller"] = Perfect()
    assert np.allclose(distillation_errors(inpainter, perfect, batch, mean)[CONTROLLER], 0)


def test_an_adapter_that_says_nothing_repaints_as_without_it(breast, models, random_inpainter):
    inpainter, model = models
    painter = Painter(random_inpainter, num_inference_steps=1)
    result = measure_repainting(inpainter, model, real_lesions(breast, 2), painter, model, seeds=2)
    assert result.n == 2 and result.seeds == 2 and result.accepted is not None
    for with_it, without, difference in (result.features, result.latents, result.accepted):
        assert with_it.value == pytest.approx(without.value, abs=1e-6) and difference.value == pytest.approx(0, abs=1e-6)
    assert result.features[0].value > 0 and result.latents[0].value > 0


def test_the_caption_names_the_finding_and_stays_the_same(breast):
    lesion, free = real_lesions(breast, 1)[0], free_places(breast, 1)[0]
    assert lesion.finding in prompt_of(lesion) and prompt_of(lesion) == prompt_of(lesion)
    assert "normal tissue" in prompt_of(free)


def test_the_command_takes_a_folder_and_writes_both_tables(breast, models, random_inpainter, tmp_path, capsys):
    _, model = models
    save_semantic_controller(model.config, model.parts, tmp_path / "controller")
    out = tmp_path / "s.json"
    options = ["--model", random_inpainter, "--semantic-controller", str(tmp_path / "controller"), "--out", str(out)]
    few = ["--n", "2", "--repaint", "1", "--seeds", "1", "--num-inference-steps", "1", "--training-crops", "2"]
    assert main(["evaluate", "semantic", "--data", str(breast.file), *few, *options]) == 0
    printed, stored = capsys.readouterr().out, json.loads(out.read_text())
    assert all(name in printed for name in (CONTROLLER, COPY, MEAN, VISIBLE, "with - without"))
    assert stored["distillation"]["lesions"][COPY]["n"] == 2 and stored["repainting"]["normal tissue"]["accepted"] is None
