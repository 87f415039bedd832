import pytest

from gateway.errors import error_body
from services.kit.errors import InvalidArgument, ModelNotFound


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.temperature", "temperature"),
        ("stop.stop", "stop"),
        ("stop.max_tokens", "max_tokens"),
        ("output.num_choices", "n"),
        ("config.language", "language"),
        ("chunk", "file"),
        ("chat.messages[2].content[0]", "messages[2].content[0]"),
        ("job.hyperparameters.batch_size", "batch_size"),
        ("job.dataset", "training_file"),
        ("model", "model"),
        ("response_format.json_schema", "response_format.json_schema"),
    ],
)
def test_a_field_of_the_contract_is_named_as_the_http_request_names_it(field: str, param: str):
    status, body, _ = error_body(InvalidArgument.at(field, "is wrong"), "r")
    assert (status, body["error"]["param"]) == (400, param)


def test_an_error_of_no_field_names_none():
    assert error_body(ModelNotFound("it is not here"), "r")[1]["error"]["param"] is None
