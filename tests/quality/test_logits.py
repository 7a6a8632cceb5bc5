"""`check --logits`, with the checkpoint's logits in transformers as tests.generate.check_logits recorded them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.quality.logits import check_logits, prompts_of, read_recorded
from borealis_gguf.quality.report import Section

from ..cli.test_cli import run
from ..generate.check_logits import COUNT, RECORDED
from ..helpers import gguf_faults
from ..helpers.gguf_faults import Edit, Plant, Weights, set_value, with_metadata
from ..helpers.lora_adapters import FOR_NANO
from ..helpers.vision_models import SEEING

WEIGHTS: list[Plant] = [
    gguf_faults.permuted_head,
    gguf_faults.norm_without_one,
    gguf_faults.swapped_kinds,
    gguf_faults.negated,
]
METADATA: dict[str, Edit] = {
    "rope base": set_value("gemma3.rope.freq_base_swa", 1e6),
    "window": set_value("gemma3.attention.sliding_window", 16),
    "epsilon": set_value("gemma3.attention.layer_norm_rms_epsilon", 0.1),
}


def compared(path: Path, nano: Path) -> Section:
    return check_logits(read_gguf(path), nano, 2, RECORDED)


def divergences(section: Section) -> list[float]:
    found = [
        re.match(r"(\S+) nats, the same likeliest token in (\d+)% of the places$", f.found) for f in section.findings
    ]
    return [float(match[1]) for match in found if match]


def test_divergence_grows_with_coarser_types(tmp_path: Path, nano: Path, nano_q8: Path, nano_q4: Path) -> None:
    (plan,) = api.plan_quantize(nano, ["F16"], tmp_path)
    api.execute([plan])
    means = []
    for path in (plan.path, nano_q8, nano_q4):
        section = compared(path, nano)
        assert [f.status for f in section.findings] == ["ok"] * 4, section
        means.append(np.mean(divergences(section)))
    assert means[0] < 1e-5 < means[1] < 1e-3 < means[2] < 0.1


def test_prompts_equal_the_recorded_ones_and_exceed_the_sliding_window(nano_q8: Path) -> None:
    prompts = prompts_of(str(nano_q8))
    assert [len(prompt) for prompt in prompts][-1] == 1400
    recorded = read_recorded(RECORDED, prompts)
    assert [len(e.positions) for e in recorded] == [COUNT] * 4
    assert all(e.positions[-1] == len(e.tokens) - 1 and e.logits.shape == (COUNT, 4096) for e in recorded)
    with pytest.raises(BorealisError, match="recorded of other prompts; record it again"):
        read_recorded(RECORDED, prompts[:-1])


@pytest.mark.parametrize("plant", WEIGHTS, ids=lambda plant: plant.__name__)
def test_faults_in_weights_raise_the_divergence(tmp_path: Path, nano: Path, nano_q8: Path, plant: Plant) -> None:
    bad = Weights(nano_q8, tmp_path / "bad.gguf")
    plant(bad)
    assert "failed" in [finding.status for finding in compared(bad.path, nano).findings]


@pytest.mark.parametrize("name", METADATA)
def test_faults_in_metadata_raise_the_divergence(tmp_path: Path, nano: Path, nano_q8: Path, name: str) -> None:
    bad = with_metadata(nano_q8, tmp_path / "bad.gguf", METADATA[name])
    assert "failed" in [finding.status for finding in compared(bad, nano).findings]


def test_a_model_that_does_not_load_is_a_failed_finding(tmp_path: Path, nano: Path, nano_q8: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(nano_q8.read_bytes()[:-4096])
    (finding,) = check_logits(replace(read_gguf(nano_q8), path=bad), nano, 2, RECORDED).findings
    assert finding.status == "failed" and finding.what == "both models"


def test_adapters_and_mmprojs_are_refused(tmp_path: Path, nano: Path) -> None:
    """A merged model has other logits than the checkpoint, and an mmproj has none. Neither error needs transformers."""
    lora, seeing = FOR_NANO.write(tmp_path), SEEING[0].write(tmp_path)
    plans = [api.plan_convert(nano, tmp_path, loras=[(lora, 0.25)]), api.plan_mmproj(seeing, tmp_path)]
    api.execute(plans)
    with pytest.raises(InvalidInput, match=r"nano-nb-7m has other logits than with adapters merged into it; leave out"):
        api.check(plans[0].path, nano, loras=[(lora, 0.25)], quick=True, logits=True)
    with pytest.raises(InvalidInput, match=r"^.*mmproj-seeing-56-F16\.gguf: an mmproj has no logits; check it without"):
        api.check(plans[1].path, seeing, quick=True, logits=True)
    done = run("check", plans[1].path, "--against", seeing, "--logits")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: ")
