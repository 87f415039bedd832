import contextvars

from services.kit import context

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_what_is_bound_goes_out_again():
    def request() -> None:
        assert (
            context.bind_request([("x-request-id", "a"), ("traceparent", TRACE), ("other", b"\x00")]) == "a"
        )
        assert context.outgoing() == [("x-request-id", "a"), ("traceparent", TRACE)]

    contextvars.copy_context().run(request)


def test_a_request_without_an_id_gets_one_of_its_own():
    def request() -> None:
        bound = context.bind_request([("x-request-id", b"bytes"), ("traceparent", "00-zz")])
        assert len(bound) == 32
        assert context.outgoing() == [("x-request-id", bound)]

    contextvars.copy_context().run(request)


def test_outside_of_a_request_nothing_goes_out():
    assert contextvars.Context().run(context.outgoing) == []
