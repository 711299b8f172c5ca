"""The options are declared once: every interface offers exactly the fields of `RequestParameters`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from florence.cli.arguments import make_parser
from florence.cli.asking import read_options
from florence.client.exchange import CallOptions
from florence.engine.request import GenerationOptions
from florence.errors import OptionError
from florence.model.config import GenerationDefaults
from florence.runtime.florence2 import RunOptions
from florence.runtime.pipeline import Pipeline
from florence.server.typed.analysis import AnalyzeInput
from florence.server.typed.inputs import INPUT_TYPES, PictureInput, PromptInput
from florence.server.typed.openapi import openapi_document
from florence.server.v2.inference import generation_options
from florence.types.info import GenerationSettings
from florence.types.options import GenerationParameters, RequestKeywords, RequestParameters, allowed_values
from florence.types.tasks import Input

OPTIONS = RequestParameters.model_fields
INPUTS = (*INPUT_TYPES.values(), PromptInput, AnalyzeInput)
OTHERS = {"image", "image_url", "text", "region", "tasks", "prompt", "answer_as"}
WISHED: dict[str, Any] = {
    "num_beams": 1,
    "max_new_tokens": 40,
    "min_new_tokens": 4,
    "no_repeat_ngram_size": 2,
    "early_stopping": "never",
    "length_penalty": -0.5,
    "repetition_penalty": 1.25,
    "do_sample": True,
    "temperature": 0.75,
    "top_k": 30,
    "top_p": 0.875,
    "seed": 2**53 - 1,
    "pictures": "original",
    "background": "#102030",
    "frame": 3,
    "page": 5,
    "tiles": "auto",
    "tile_scale": 1.75,
    "tile_overlap": 0.3,
    "min_score": 0.25,
    "labels": ("car", "red door"),
    "nms_iou": 0.6,
    "nms_agnostic": True,
    "min_size": 12.5,
    "max_items": 7,
    "adapter": "receipts",
}
SENT = {**WISHED, "labels": "car,red door", "nms_agnostic": "true"}  # as text


def test_every_option_has_a_value_in_these_tests() -> None:
    """Each option has a value here, so that a new one is tested at each interface."""
    assert list(WISHED) == list(OPTIONS)
    assert set(RequestParameters(**WISHED).model_dump().values()) == set(WISHED.values())


def test_keyword_arguments_have_the_models_names_and_types() -> None:
    """The TypedDict has the model's fields and types; library and client add only other options."""
    declared = get_type_hints(RequestParameters)
    hints = {name: declared[name] for name in OPTIONS}
    assert get_type_hints(RequestKeywords) == hints
    assert {name: hint for name, hint in get_type_hints(RunOptions).items() if name in OPTIONS} == hints
    assert {name: hint for name, hint in get_type_hints(CallOptions).items() if name in OPTIONS} == hints
    assert get_type_hints(RunOptions).keys() - OPTIONS.keys() >= {"region", "timeout_s"}
    assert get_type_hints(CallOptions).keys() - OPTIONS.keys() == {"timeout_s"}


@pytest.mark.parametrize("model", INPUTS, ids=lambda model: model.__name__)
def test_typed_endpoints_take_them_all(model: type[PictureInput]) -> None:
    """Each typed endpoint takes all options, with the same types and bounds, beside the picture and the
    task's own inputs."""
    assert set(model.model_fields) - set(OPTIONS) <= OTHERS
    declared = RequestParameters.model_json_schema()["properties"]
    taken = model.model_json_schema()["properties"]
    assert {name: taken[name] for name in OPTIONS} == declared


def test_the_openapi_document_shows_them_all() -> None:
    """The OpenAPI document has each option with its description."""
    shown = openapi_document()["components"]["schemas"][INPUT_TYPES[Input.NONE].__name__]["properties"]
    assert list(shown) == ["image", "image_url", *OPTIONS]
    assert all(shown[name]["description"] == field.description for name, field in OPTIONS.items())


def test_v2_parameters_are_read_by_the_same_names() -> None:
    """v2 parameters have the same names; others are ignored, as are sampling options without sampling."""
    assert generation_options({"temperature": 0, "seed": "x", "top_k": 1}) == RequestParameters()
    assert generation_options({**SENT, "sequence_id": 1}) == RequestParameters(**WISHED)


def test_the_command_line_has_a_flag_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option has a flag, with its bounds in the help, and the flags' values are the model's."""
    flags = [part for name, value in SENT.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    for command in (["run", "p.png", "caption"], ["bulk", "p.png", "--task", "caption", "--out", "o"]):
        assert read_options(make_parser().parse_args([*command, *flags])) == RequestParameters(**WISHED)
        assert read_options(make_parser().parse_args(command)) == RequestParameters()
        with pytest.raises(SystemExit):
            make_parser().parse_args([command[0], "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert all(f"({allowed_values(name)})" in printed for name in OPTIONS)


def test_the_command_line_refuses_by_the_options_rule() -> None:
    """A wrong flag is refused in the words of all interfaces."""
    with pytest.raises(OptionError, match="num_beams must be an integer from 1 to 8, got 'many'"):
        read_options(make_parser().parse_args(["run", "p.png", "caption", "--num-beams", "many"]))


def test_the_engine_gets_each_of_them() -> None:
    """The engine gets each option, with defaults for those left out."""
    defaults = GenerationDefaults(3, 3, True, 1.0, 0, 2)
    pipeline = Pipeline("none", None, defaults, 1024)  # type: ignore[arg-type]
    assert [field.name for field in fields(GenerationOptions)] == list(GenerationParameters.model_fields)
    generation = {name: WISHED[name] for name in GenerationParameters.model_fields}
    assert pipeline.options(RequestParameters(**WISHED)) == GenerationOptions(**generation)
    silent = pipeline.options(GenerationParameters())
    assert silent == GenerationOptions(3, 1024, 0, 3, True, 1.0, top_k=50)


def test_a_request_that_samples_has_one_beam_and_a_seed() -> None:
    """A request that samples has one beam unless it sets another number, and a random seed if it sets
    none."""
    pipeline = Pipeline("none", None, GenerationDefaults(3, 3, True, 1.0, 0, 2), 1024)  # type: ignore[arg-type]
    made = [pipeline.options(GenerationParameters(do_sample=True)) for _ in range(9)]
    assert {(each.num_beams, each.do_sample) for each in made} == {(1, True)}
    assert len({each.seed for each in made}) == 9
    assert all(each.seed is not None and 0 <= each.seed < 2**32 for each in made)


def test_a_checkpoints_own_settings_hold_where_a_request_is_silent() -> None:
    """The checkpoint's settings are the defaults, also for sampling, which only a request can turn on."""
    defaults = GenerationDefaults(3, 3, True, 1.0, 0, 2, 1.5, 0.5, 7, 0.25)
    pipeline = Pipeline("none", None, defaults, 1024)  # type: ignore[arg-type]
    off = GenerationParameters(do_sample=False, temperature=0.5, seed=1)  # as a client with a switch sends
    assert not pipeline.options(off).do_sample
    silent, asked = (pipeline.options(GenerationParameters(do_sample=wish)) for wish in (None, True))
    assert (silent.do_sample, silent.repetition_penalty) == (False, 1.5)
    assert (asked.repetition_penalty, asked.temperature, asked.top_k, asked.top_p) == (1.5, 0.5, 7, 0.25)


def test_info_says_each_of_them() -> None:
    """Info lists the default of each generation option."""
    assert set(GenerationSettings.model_fields) == {
        *GenerationParameters.model_fields,
        "forced_bos_id",
        "forced_eos_id",
    }


@pytest.mark.parametrize("number", [0, 1, 0.0, 1.0])
def test_early_stopping_is_no_number(number: float) -> None:
    """A number is refused as early_stopping."""
    with pytest.raises(OptionError, match="early_stopping"):
        generation_options({"early_stopping": number})
