from __future__ import annotations

import pytest

from monai_diffaug.studies.markers import replace_between


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = "a\n<!-- x:start -->\nold\n<!-- x:end -->\nb <!-- y:start -->kept<!-- y:end -->"
    once = replace_between(text, "x", "new")
    assert once == "a\n<!-- x:start -->\n\nnew\n<!-- x:end -->\nb <!-- y:start -->kept<!-- y:end -->"
    assert replace_between(once, "x", "new") == once


@pytest.mark.parametrize("text", ["", "<!-- x:start -->", "<!-- x:end -->", "<!-- x:end --><!-- x:start -->"])
def test_a_text_without_both_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="<!-- x:start --> and <!-- x:end -->"):
        replace_between(text, "x", "new")
