"""Progress bars of the libraries are off while a model is loaded."""

from __future__ import annotations

import pytest
from transformers.utils import logging as transformers_logging

from monai_diffaug.models.progress_bars import without_progress_bars


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_bars_are_off_in_the_block_and_the_former_setting_comes_back_after_an_error(enabled: bool) -> None:
    before = transformers_logging.is_progress_bar_enabled()
    (transformers_logging.enable_progress_bar if enabled else transformers_logging.disable_progress_bar)()
    try:
        with pytest.raises(KeyError), without_progress_bars():
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyError
        assert transformers_logging.is_progress_bar_enabled() is enabled
    finally:
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()


def test_loading_a_model_prints_nothing(random_inpainter: str, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    from monai_diffaug.models.inpainter import load_inpainter
    from monai_diffaug.models.registry import ModelSpec

    capfd.readouterr()
    load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    assert capfd.readouterr() == ("", "")
