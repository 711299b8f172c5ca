"""The shared types: documented, with valid examples, and parameters refused by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from florence.answers.answer import Answer
from florence.errors import OptionError
from florence.server.typed.inputs import TextInput
from florence.types.analysis import AnalysisTask
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.info import ServiceInfo
from florence.types.options import MAX_TEXT_CHARS, RequestParameters, read_request_parameters
from florence.types.results import (
    Detection,
    Detections,
    Instance,
    OcrRegion,
    OcrRegions,
    Result,
    Segmentation,
    Text,
)

MODELS: list[type[BaseModel]] = [
    *(Text, Detection, Detections, OcrRegion, OcrRegions, Instance, Segmentation, ImageSize, Usage, Timings),
    *(TaskAnswer[Text], TaskAnswer[Detections], TaskAnswer[OcrRegions], TaskAnswer[Segmentation]),
    *(TaskAnswer, Answer, RequestParameters, ServiceInfo),
]
PIXELS = st.floats(-1e6, 1e6)
ANSWER = Answer.model_json_schema()["examples"][0]
SCORES = st.none() | st.floats(0, 1)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_has_an_example_that_holds(model: type[BaseModel]) -> None:
    """Each example is a valid value and is unchanged by a round trip through JSON."""
    (example,) = model.model_json_schema()["examples"]
    value = model.model_validate(example)
    assert model.model_validate_json(value.model_dump_json()) == value
    assert json.loads(value.model_dump_json(exclude_unset=True)) == example


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_is_documented_and_frozen(model: type[BaseModel]) -> None:
    """Each model and each field of a plain type is documented, and no value can be changed."""
    assert model.model_config["frozen"] is True
    schema = model.model_json_schema()
    assert schema["description"].endswith(".")
    fields = schema["properties"]
    for name, field in fields.items():
        assert name == "kind" or "$ref" in field or field["description"].endswith("."), name


@pytest.mark.parametrize("result", [Text, Detections, OcrRegions, Segmentation])
def test_the_example_of_an_answer_is_of_its_kind(result: type[BaseModel]) -> None:
    """The example of an answer type has that type's result."""
    (example,) = TaskAnswer[result].model_json_schema()["examples"]  # type: ignore[valid-type]
    assert TaskAnswer[result].__name__ == f"{result.__name__}Answer"  # type: ignore[valid-type]
    assert example["result"] == result.model_json_schema()["examples"][0]


@given(
    result=st.one_of(
        st.builds(Text, text=st.text(), score=SCORES),
        st.builds(Detections, detections=st.lists(
            st.builds(Detection, label=st.text(), box=st.tuples(*[PIXELS] * 4), score=SCORES))),
        st.builds(Segmentation, instances=st.lists(
            st.builds(Instance, label=st.text(), polygons=st.lists(st.lists(PIXELS)), score=SCORES))),
    )
)  # fmt: skip
def test_a_result_is_read_back_by_its_kind(result: Any) -> None:
    """Any result read back from JSON has the same type and values."""
    adapter: TypeAdapter[Any] = TypeAdapter(Result)
    assert adapter.validate_json(result.model_dump_json()) == result


def test_an_answer_gives_the_original_json() -> None:
    """`florence()` is the original's JSON of the raw text, in pixels of the answer's picture."""
    (example,) = Answer.model_json_schema()["examples"]
    answer = Answer.model_validate(example)
    box = [34.23999786376953, 160.0800018310547, 597.4400024414062, 371.7599792480469]
    assert answer.florence() == {"<OD>": {"bboxes": [box], "labels": ["car"]}}
    assert len(answer.token_logprobs) == len(answer.token_ids) - 1 == answer.usage.generated_tokens


def test_the_repr_of_an_answer_leaves_its_tokens_out() -> None:
    """The repr has no tokens, whose hundreds of numbers would hide the result."""
    shown = repr(Answer.model_validate(ANSWER))
    assert "token_ids" not in shown
    assert "token_logprobs" not in shown
    assert "Detection(label='car'" in shown


def test_parameters_are_all_optional() -> None:
    """All parameters are optional, and values in range are accepted, also as a form's text."""
    assert set(read_request_parameters({}).model_dump().values()) == {None}
    taken = read_request_parameters({"num_beams": "5", "length_penalty": -0.5, "early_stopping": False})
    assert taken == RequestParameters(num_beams=5, length_penalty=-0.5, early_stopping=False)
    assert read_request_parameters({"early_stopping": "never"}).early_stopping == "never"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer from 1 to 8, got 0"),
        ({"num_beams": 9}, "num_beams must be an integer from 1 to 8, got 9"),
        ({"num_beams": True}, "num_beams must be an integer from 1 to 8, got True"),
        ({"num_beams": 2.5}, "num_beams must be an integer from 1 to 8, got 2.5"),
        ({"num_beams": "many"}, "num_beams must be an integer from 1 to 8, got 'many'"),
        ({"max_new_tokens": 5000}, "max_new_tokens must be an integer from 1 to 4096, got 5000"),
        ({"min_new_tokens": -1}, "min_new_tokens must be an integer from 0 to 4096, got -1"),
        ({"no_repeat_ngram_size": None, "max_new_tokens": 0}, "max_new_tokens must be an integer from 1"),
        ({"early_stopping": "perhaps"}, "early_stopping must be true, false or \"never\", got 'perhaps'"),
        ({"length_penalty": math.nan}, "length_penalty must be a number from -10 to 10, got nan"),
        ({"length_penalty": math.inf}, "length_penalty must be a number from -10 to 10, got inf"),
        ({"length_penalty": 10**400}, "length_penalty must be a number from -10 to 10, got 1000"),
        ({"beams": 1}, "unknown option 'beams'; the options are num_beams, max_new_tokens"),
        ({"do_sample": True, "num_beams": 3}, "do_sample draws one answer and needs num_beams=1, got 3"),
        ({"temperature": 0.5, "seed": 1}, "temperature and seed: nothing is drawn without do_sample=true"),
        ({"top_k": 9}, "top_k: nothing is drawn"),
        ({"do_sample": "perhaps"}, "do_sample must be true or false, got 'perhaps'"),
        ({"do_sample": True, "seed": 2**53}, "seed must be an integer from 0 to 9007199254740991, got 9007"),
        ({"do_sample": True, "temperature": 0}, "temperature must be a number from 0.01 to 100, got 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens must not be above max_new_tokens"),
    ],
)
def test_wrong_parameters_are_refused_by_name(options: dict[str, object], message: str) -> None:
    """The short error names the option, its allowed values and the wrong one."""
    with pytest.raises(OptionError) as caught:
        read_request_parameters(options)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@given(
    options=st.dictionaries(
        st.text() | st.sampled_from(sorted(RequestParameters.model_fields)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_any_options_are_taken_or_refused(options: dict[str, object]) -> None:
    """Any options give parameters or an OptionError."""
    try:
        parameters = read_request_parameters(options)
    except OptionError:
        return
    assert set(options) <= set(RequestParameters.model_fields)
    assert parameters.num_beams is None or 1 <= parameters.num_beams <= 8


def test_scores_out_of_range_are_refused() -> None:
    """A score is from 0 to 1, or None."""
    for score in (-0.1, 1.1, math.nan):
        with pytest.raises(ValidationError):
            Text(text="", score=score)


def test_the_pure_rooms_import_nothing_heavy() -> None:
    """Parsing an answer imports neither torch nor numpy nor a tokenizer."""
    code = (
        "import sys; from florence.answers.answer import Answer; from florence.answers import parse_answer;"
        "import florence.types.tasks, florence.types.regions;"
        "print({'torch', 'numpy', 'transformers', 'PIL', 'bentoml'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "set()\n"


@pytest.mark.parametrize(
    ("result", "name"),
    [
        (Text(text="a car"), "text"),
        (Detections(detections=[Detection(label="car", box=(1, 2, 3, 4))]), "detections"),
        (OcrRegions(regions=[OcrRegion(text="EXIT", quad=(1, 2, 3, 2, 3, 4, 1, 4))]), "regions"),
        (Segmentation(instances=[Instance(label="", polygons=[[1, 2, 3, 2, 3, 4]])]), "instances"),
    ],
)
def test_an_answer_gives_what_its_result_holds_and_nothing_else(result: Result, name: str) -> None:
    """An answer has its result's attribute under the same name, not as a field, and no other result's."""
    answer = TaskAnswer[Result].model_validate(ANSWER | {"result": result.model_dump()})
    assert getattr(answer, name) == getattr(result, name)
    assert name not in answer.model_dump()
    for other in {"text", "detections", "regions", "instances"} - {name}:
        with pytest.raises(AttributeError, match=f"has no attribute '{other}'"):
            getattr(answer, other)


def test_a_text_is_as_long_at_every_door() -> None:
    """All endpoints announce the same limit on a text."""
    announced = [
        TextInput.model_json_schema()["properties"]["text"]["maxLength"],
        AnalysisTask.model_json_schema()["properties"]["text"]["anyOf"][0]["maxLength"],
    ]
    assert announced == [MAX_TEXT_CHARS, MAX_TEXT_CHARS]
