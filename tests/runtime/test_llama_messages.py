"""llama.cpp's error messages: each thread gets those of its own calls, whatever other threads load meanwhile."""

import re
from pathlib import Path

import llama_cpp as llama
import pytest

from borealis_gguf.errors import BorealisError
from borealis_gguf.runtime.llama.loading import load_model
from borealis_gguf.runtime.llama.vocabulary import clear_errors, encoded_path, error_clause, init_llama, open_vocabulary

from ..helpers.serving import until
from ..helpers.stepping import elsewhere
from .test_broken_process import Later, raised_by


@pytest.fixture
def broken(tmp_path: Path) -> list[Path]:
    """Files that do not exist: llama.cpp's messages name them."""
    return [tmp_path / f"broken-{number}.gguf" for number in range(2)]


def test_a_load_that_fails_in_another_thread_changes_no_message(broken: list[Path]) -> None:
    """Between the failure of the first and the moment when its message is read."""
    told: list[str] = []

    def load_other() -> None:
        with pytest.raises(BorealisError) as caught:
            open_vocabulary(broken[1])
        told.append(str(caught.value))

    init_llama()
    clear_errors()
    assert llama.llama_model_load_from_file(encoded_path(broken[0]), llama.llama_model_default_params()) is None
    elsewhere(load_other)
    assert "broken-0.gguf" in error_clause() and "broken-1" not in error_clause()
    assert told[0].count("broken-1.gguf") > 1 and "broken-0" not in told[0]


def test_a_load_that_goes_on_meanwhile_keeps_no_message_of_others(nano_q8: Path, broken: list[Path]) -> None:
    """It is held in the middle while the other one fails."""
    failed: list[bool] = []

    def hold(fraction: float) -> None:
        if not failed:
            elsewhere(lambda: failed.append(raised_by(lambda: open_vocabulary(broken[1])) is not None))
        assert error_clause() == ""

    init_llama()
    model = load_model(nano_q8, {}, hold)
    assert failed == [True] and error_clause() == ""
    llama.llama_model_free(model)


def test_many_loads_at_once(broken: list[Path]) -> None:
    loads = [Later(lambda path=path: open_vocabulary(path)) for path in broken * 20]
    until(lambda: all(load.result is not None for load in loads))
    for load, path in zip(loads, broken * 20, strict=True):
        assert set(re.findall(r"broken-\d", str(load.result))) == {path.stem}
        assert str(load.result).count(path.stem) > 1
