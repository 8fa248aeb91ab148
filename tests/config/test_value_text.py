"""Values as people read them."""

from typing import Any

import pytest

from avtcli.config.value_text import value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.1 + 0.2, "0.3"),
        (1e-7, "1e-07"),
        (True, "True"),
        ([1, None, 0.5], "1, -, 0.5"),
        ([[0.8, 1.2], [1, 1]], "0.8, 1.2; 1, 1"),
        ({"name": "avt", "scale": 2.0}, "name avt, scale 2"),
        ([{"a": 1, "b": ""}, {"a": 2}], "a 1, b; a 2"),
    ],
)
def test_a_value_is_text_without_the_marks_of_python(value: Any, text: str) -> None:
    assert value_text(value) == text
