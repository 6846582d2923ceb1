from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainers.methods import methods
from trainers.settings import DataConfig, TokenConfig, TrainConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"learning_rate": 0},
        {"learning_rate": 11},
        {"weight_decay": -1},
        {"warmup": -1},
        {"seed": -1},
        {"preview_every": -1},
        {"precision": "fp8"},
        {"unknown": 1},
    ],
)
def test_figures_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        TrainConfig(**fields)


@pytest.mark.parametrize("fields", [{"flip": 1.1}, {"resolution": 4}, {"images": 4}])
def test_data_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        DataConfig(**({"images": "x"} | fields))


@pytest.mark.parametrize("fields", [{"token": ""}, {"init": ""}, {"vectors": 0}, {"vectors": 65}])
def test_word_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        TokenConfig(**({"token": "<x>", "init": "fox"} | fields))


def test_the_rate_is_scaled_as_the_official_script_does():
    assert TrainConfig(learning_rate=1e-3, batch=2, accumulate=3).rate == pytest.approx(6e-3)
    assert TrainConfig(learning_rate=1e-3, batch=2, accumulate=3, scale_lr=False).rate == 1e-3


def test_every_field_has_help():
    for config in (DataConfig, TrainConfig, *(method.Settings for method in methods().values())):
        assert all(field.description for field in config.model_fields.values()), config


def test_configurations_survive_toml_and_json():
    toml = 'steps = 7\nlearning_rate = 0.01\nprecision = "bf16"\n'
    config = TrainConfig(**tomllib.loads(toml))
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    data = DataConfig(images=Path("a/b"))
    assert DataConfig.model_validate_json(data.model_dump_json()) == data


SETTINGS = {
    "textual-inversion": ({"token": "<x>", "init": "fox"}, {"token": "<x>", "init": "fox", "vectors": 2}),
    "dreambooth": ({"token": "q", "class_word": "fox"}, {"token": "q", "class_word": "fox", "form": "full"}),
    "custom-diffusion": ({"token": "<x>", "class_word": "fox"}, {"token": "<x>", "class_word": "fox", "prior": "none"}),
    "reversion": (
        {"token": "<r>", "init": "fox", "left": "fox", "right": "cat"},
        {"token": "<r>", "init": "fox", "lora": True},
    ),
}


@pytest.mark.parametrize("name", list(methods()))
@pytest.mark.parametrize("family", ["pocket", "sd1", "sd2", "sdxl"])
def test_recipes_hold_values_the_configurations_accept(name, family):
    method = methods()[name]
    for settings in (*(offer.values for offer in method.offers), *SETTINGS.get(name, ())):
        recipe = method.recipe(family, method.Settings(**settings))
        known = [method.Settings, TrainConfig, DataConfig]
        assert set(recipe) <= {field for kind in known for field in kind.model_fields}
        for kind, own in zip(known, (settings, {}, {"images": "x"}), strict=True):
            kind(**own | {key: value for key, value in recipe.items() if key in kind.model_fields})


def test_a_class_prompt_must_hold_its_class():
    dreambooth = methods()["dreambooth"].Settings
    with pytest.raises(ValidationError, match="'a photo of a cat' lacks the class word 'dog'"):
        dreambooth(token="sks", class_word="dog", class_prompt="a photo of a cat")
    kept = dreambooth(token="sks", class_word="dog", class_prompt="a dog", prior="pictures")
    assert kept.class_prompt == "a dog"


@pytest.mark.parametrize("given", [{"class_images": "x"}, {"num_class_images": 7}, {"class_prompt": "a dog"}])
def test_settings_of_class_pictures_without_class_pictures_are_refused(given):
    with pytest.raises(ValidationError, match=f"{next(iter(given))} belong to class pictures"):
        methods()["dreambooth"].Settings(token="sks", class_word="dog", **given)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"prior_weight": -1}, {"form": "full", "dora": True}, {"alpha": 0}])
def test_impossible_settings_of_dreambooth_are_refused(wrong):
    with pytest.raises(ValidationError):
        methods()["dreambooth"].Settings(token="sks", class_word="dog", **wrong)


def test_what_prompts_say_to_call_a_subject():
    dreambooth = methods()["dreambooth"].Settings
    assert dreambooth(token="sks", class_word="dog").trigger == "sks dog"
    assert dreambooth(token="<rex>", class_word="dog", pivotal=True).trigger == "<rex>"
    assert methods()["custom-diffusion"].Settings(token="<rex>", class_word="dog").trigger == "<rex>"
