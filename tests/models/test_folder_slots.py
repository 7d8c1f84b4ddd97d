from __future__ import annotations

import json

import diffusers
import pytest

from monai_diffaug.models.folder_slots import SCHEDULERS, build_scheduler_of, check_slot


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_each_name_of_the_list_is_a_scheduler_of_diffusers(name) -> None:
    scheduler = getattr(diffusers, name)
    needs_torchsde = "torchsde" in getattr(scheduler, "_backends", ())  # an optional package of diffusers
    assert needs_torchsde or issubclass(scheduler, diffusers.SchedulerMixin)


def test_a_config_without_a_class_is_ddim_with_its_values(tmp_path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"num_train_timesteps": 50}))
    scheduler = build_scheduler_of(tmp_path / "scheduler_config.json")
    assert type(scheduler).__name__ == "DDIMScheduler" and scheduler.config.num_train_timesteps == 50


def test_all_names_of_a_text_encoder_count(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel", "BertModel"]}))
    with pytest.raises(ValueError, match="'BertModel', which is no text encoder here; use CLIPTextModel"):
        check_slot("text_encoder", tmp_path / "config.json")
