import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.core.licenses import (
    canonical,
    check_license,
    is_license,
    license_of_metadata,
    license_of_text,
)
from services.kit.errors import PermissionDenied


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"", ""),
        (b"\n   Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        (b"\n \n  MIT License\nCopyright", "MIT"),
        (
            b"Copyright (c) 2024 A\n\nPermission is hereby granted, free of charge, to any person obtaining\na copy",
            "MIT",
        ),
        (b"# LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        (b"Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        (b"Attribution 4.0 International\n\n=====", "CC-BY-4.0"),
        (b"Our License\nParts are under the Apache License, Version 2.0", "Our License"),
        (b"Apache\x1b[31m \x00License\r\n", "Apache [31m License"),
        (b"x" * 5000, "x" * 120),
        (b"\xff\xfe\nGemma", "Gemma"),
    ],
)
def test_a_text_is_named_by_what_it_begins_with(text: bytes, name: str) -> None:
    assert license_of_text(text) == name


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ("License-Expression: mit or apache-2.0\nLicense: other\n", "MIT OR Apache-2.0"),
        ("License: Apache 2.0\n", "Apache 2.0"),
        ("License: MIT License\n        \n        Copyright (c) 2024\n", "MIT"),
        ("Classifier: License :: OSI Approved :: Apache Software License\n", "Apache-2.0"),
        ("Classifier: License :: Other/Proprietary License\n", "Other/Proprietary License"),
        ("Classifier: Programming Language :: Python\n", ""),
        ("\nLicense: MIT\n", ""),
    ],
)
def test_a_wheel_tells_its_licence_by_expression_field_or_classifier(metadata: str, name: str) -> None:
    assert license_of_metadata(f"Metadata-Version: 2.4\nName: x\n{metadata}".encode()) == name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LICENSE", True),
        ("license", True),
        ("LICENCE.txt", True),
        ("COPYING", True),
        ("LICENSE.md", True),
        ("sub/LICENSE", False),
        ("license.json", False),
        ("licenses", False),
    ],
)
def test_a_licence_is_told_by_its_name_at_the_top(path: str, expected: bool) -> None:
    assert is_license(path) is expected


@pytest.mark.parametrize(
    "name", ["apache-2.0", "Apache-2.0", "MIT", "llama3.1", "MIT OR GPL-3.0-only", "MIT AND Apache-2.0"]
)
def test_what_is_allowed_passes_in_any_spelling(name: str) -> None:
    check_license(name, ["Apache-2.0", "mit", "LLAMA3.1"])


@pytest.mark.parametrize(
    "name", ["GPL-3.0-only", "MIT AND GPL-3.0-only", "(MIT)", "MIT WITH x", "other", "Apache License", ""]
)
def test_what_is_not_allowed_is_refused_with_the_setting_and_the_name(name: str) -> None:
    with pytest.raises(PermissionDenied, match=r"downloader\.licenses: Apache-2\.0, MIT"):
        check_license(name, ["Apache-2.0", "MIT"])


def test_without_a_list_all_are_allowed() -> None:
    check_license("anything", [])
    check_license("", [])


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_makes_a_name_that_cannot_be_shown(text: str) -> None:
    raw = text.encode("utf-8", "replace")
    for name in (license_of_text(raw), license_of_metadata(b"License: " + raw), canonical(text)):
        assert len(name) <= 300
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name)
