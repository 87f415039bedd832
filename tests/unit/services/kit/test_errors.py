from services.kit import errors
from services.kit.errors import FieldViolation, LaresError


def all_errors(cls: type[LaresError] = LaresError) -> list[type[LaresError]]:
    """Every error of the kit; a test's own subclasses are no part of the contract."""
    below = [e for sub in cls.__subclasses__() if sub.__module__ == errors.__name__ for e in all_errors(sub)]
    return [cls, *below]


def test_the_tree_in_the_docstring_names_every_error():
    assert errors.__doc__ is not None
    missing = [cls.__name__ for cls in all_errors() if cls.__name__ not in errors.__doc__]
    assert missing == []


def test_a_reason_is_the_upper_snake_name_and_finds_its_class():
    assert errors.ModelNotFound.reason == "MODEL_NOT_FOUND"
    assert errors.error_class("MODEL_NOT_FOUND") is errors.ModelNotFound
    assert errors.error_class("FROM_THE_FUTURE") is None


def test_no_two_errors_share_a_reason():
    reasons = [cls.reason for cls in all_errors()]
    assert len(set(reasons)) == len(reasons)


def test_an_error_prints_its_message_and_keeps_its_parts():
    error = errors.InvalidArgument.at("temperature", "must be between 0 and 2")
    assert str(error) == "temperature: must be between 0 and 2"
    assert error.violations == (FieldViolation("temperature", "must be between 0 and 2"),)


def test_what_may_be_retried_says_when():
    assert errors.WorkerLost("gone").retry_after_s == 1.0
    assert errors.WorkerLost("gone", retry_after_s=0.0).retry_after_s == 0.0
    assert errors.ModelNotFound.named("x").retry_after_s is None


def test_a_context_overflow_tells_the_three_numbers():
    error = errors.ContextLengthExceeded.of(num_prompt_tokens=9000, max_tokens=100, context_length=8192)
    assert "9000" in str(error)
    assert error.metadata == {"num_prompt_tokens": "9000", "max_tokens": "100", "context_length": "8192"}
