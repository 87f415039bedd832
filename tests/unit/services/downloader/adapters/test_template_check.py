import re

import pytest

from services.downloader.adapters.template_check import template_fault

CHATML = (
    "{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}{{ raise_exception('x') }}"
)


@pytest.mark.parametrize("template", ["", "{{ messages }}", CHATML, "{{ '__class__' }}", "{{ a[b] }}"])
def test_what_inference_can_render_has_no_fault(template: str) -> None:
    assert template_fault(template) == ""


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for %}", "Expected"),
        ("{{ messages", "end of"),
        ("{% generation %}", "end of"),
        ("{{ ''.__class__.__mro__ }}", "__class__|__mro__"),
        ("{{ messages['__init__'] }}", "reaches for __init__"),
        ("{{ " + "(" * 5000, "nested|Expected|end of"),
        ("{% include 'x' %}{{ nothing|nofilter }}{% nonsense %}", "nonsense"),
    ],
)
def test_what_it_cannot_or_may_not_is_told(template: str, fault: str) -> None:
    assert re.search(fault, template_fault(template))
