from cli.models import finding_rows, perplexity_text
from lares.registry.v1 import registry_pb2


def test_perplexity_is_told_beside_that_of_the_source():
    measured = registry_pb2.Perplexity(value=25.5, baseline=25.0, num_tokens=2048)
    assert perplexity_text(measured) == "perplexity 25.50 on 2,048 tokens, +2.0% to 25.00"


def test_perplexity_without_that_of_the_source_stands_alone():
    assert perplexity_text(registry_pb2.Perplexity(value=9.0, num_tokens=7)) == "perplexity 9.00 on 7 tokens"


def test_of_what_was_noticed_the_worst_comes_first():
    signed = registry_pb2.Finding(
        kind=registry_pb2.FINDING_KIND_SIGNED,
        severity=registry_pb2.FINDING_SEVERITY_INFO,
        message="signed with a.pub",
    )
    pickle = registry_pb2.Finding(
        kind=registry_pb2.FINDING_KIND_PICKLE,
        severity=registry_pb2.FINDING_SEVERITY_DANGER,
        path="m.pkl",
        message="it imports os.system",
    )
    assert finding_rows(registry_pb2.Version(findings=[signed, pickle])) == [
        ["pickle", "danger", "m.pkl", "it imports os.system"],
        ["signed", "info", "", "signed with a.pub"],
    ]
