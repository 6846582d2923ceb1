from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainers import methods
from trainers.config import DataConfig, TokenConfig, TrainConfig


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


@pytest.mark.parametrize("fields", [{"flip": 1.1}, {"resolution": 4}, {"images": None}])
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
    for config in (DataConfig, TrainConfig, *(method.Config for method in methods().values())):
        assert all(field.description for field in config.model_fields.values()), config


def test_configurations_survive_toml_and_json():
    toml = 'steps = 7\nlearning_rate = 0.01\nprecision = "bf16"\n'
    config = TrainConfig(**tomllib.loads(toml))
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    data = DataConfig(images=Path("a/b"))
    assert DataConfig.model_validate_json(data.model_dump_json()) == data


def test_presets_name_fields_that_exist():
    known = {*DataConfig.model_fields, *TrainConfig.model_fields}
    for method in methods().values():
        for preset in method.presets.values():
            assert set(preset) <= known | set(method.Config.model_fields)
