"""The cross check: a GGUF's settings and weights against config.json and the safetensors, without `convert`.

The other sections of a check learn from `convert` what a checkpoint means, so an error there would be on both sides of
what they compare. The cross check has no plan: it reads some rows from the checkpoint's files and settings from
config.json, and knows their meaning from definitions of its own.
"""

from ...checkpoint.gguf import GGUFFile
from ...pipeline.plan import Codec, GGUFModel
from ..report import Finding, Section, failures_first
from .settings_cross_check import check_settings
from .transformers_definition import definition_of
from .weights_cross_check import CheckpointWeights, check_weights

TITLE = "cross check"


def cross_check(header: GGUFFile, source: GGUFModel, codec: Codec, *, quick: bool) -> Section:
    """The section of the cross check, without findings where `source` is no checkpoint, and on an adapter.

    `quick` compares weights of the first and the last block only. Weights that adapters have changed are left out.
    """
    checkpoint, kind = source.checkpoint, header.value("general.type")
    if checkpoint is None or kind == "adapter":
        return Section(TITLE, ())
    name, definition = definition_of(checkpoint.config, vision=kind == "mmproj")
    if definition is None:
        return Section(TITLE, (Finding("note", f"none: {name} is defined only once"),))
    settings = definition.read_settings(checkpoint.config)
    merged = {t.name for t in source.tensors if t.source.updates or t.source.precision is not None}
    weights = CheckpointWeights(header, checkpoint.tensors, merged)
    findings = [
        *check_settings(header, definition, settings, checkpoint),
        *check_weights(weights, definition, settings, codec, quick=quick),
    ]
    return Section(TITLE, failures_first(findings, 8))
