from cli.models import perplexity_text
from lares.registry.v1 import registry_pb2


def test_perplexity_is_told_beside_that_of_the_source():
    measured = registry_pb2.Perplexity(value=25.5, baseline=25.0, num_tokens=2048)
    assert perplexity_text(measured) == "perplexity 25.50 on 2,048 tokens, +2.0% to 25.00"


def test_perplexity_without_that_of_the_source_stands_alone():
    assert perplexity_text(registry_pb2.Perplexity(value=9.0, num_tokens=7)) == "perplexity 9.00 on 7 tokens"
