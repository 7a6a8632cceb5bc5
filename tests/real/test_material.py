"""What the other tests here run on is what they know."""

import pytest

from .material import FETCH, MATERIALS, digest, real, wanted


def test_real_models_are_those_that_are_known() -> None:
    if not wanted():
        pytest.skip(f"real tokenizers and weights (450 MB) are not fetched: {FETCH}")
    for material in MATERIALS.values():
        folder = real(material.name)
        assert {file: digest(folder / file) for file in material.files} == {
            file: known for file, (known, _) in material.files.items()
        }
