"""The pack's own types of connections. What flows through them are the small handles of u1_core.workflow."""

from comfy_api.latest import io

CATEGORY = "U1 Style Studio"

Model = io.Custom("U1_MODEL")
Dataset = io.Custom("U1_DATASET")
PrefixCache = io.Custom("U1_PREFIX_CACHE")
LoraSpec = io.Custom("U1_LORA_SPEC")
Run = io.Custom("U1_RUN")
