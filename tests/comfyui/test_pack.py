"""The pack in a running ComfyUI: it loads cleanly, lists its nodes, and they run."""

import json
import re

NODE_IDS = (
    "LoadU1Bf16Offload",
    "U1StyleDataset",
    "BuildPrefixKVCache",
    "LoRASpec",
    "TrainStyleLoRA",
    "U1TrainingRun",
    "StackUpstream8Step",
    "LoadU1LoRA",
    "ExportU1LoRA",
    "U1Sample",
    "U1Edit",
    "U1Interleave",
    "U1Ask",
    "U1CaptionDataset",
    "U1CompareGrid",
)
"""Exactly these: workflows that people have saved name them."""


def test_pack_is_imported_without_a_complaint(server):
    assert re.search(r"seconds: \S*custom_nodes/u1-style-studio", server.log.replace("\\", "/")), server.log
    assert "Traceback" not in server.log
    lines = [line.lower() for line in server.log.splitlines()]
    complaints = [line for line in lines if re.search(r"u1|import failed", line) and re.search("warn|error|fail", line)]
    assert complaints == []


def test_nodes_are_listed_with_help_on_every_input_and_output(server):
    infos = json.loads(server.get("/object_info"))
    nodes = {name: info for name, info in infos.items() if info["python_module"] == "custom_nodes.u1-style-studio"}
    assert sorted(nodes) == sorted(NODE_IDS)
    for info in nodes.values():
        assert info["description"]
        assert info["search_aliases"]
        inputs = [each for kind in ("required", "optional") for each in info["input"].get(kind, {}).values()]
        assert all(options["tooltip"] for _, options in inputs)
        numbers = [options for kind, options in inputs if kind in ("INT", "FLOAT")]
        assert all({"min", "max"} <= set(options) for options in numbers)
        assert all(info["output_tooltips"])


def test_the_browser_gets_each_nodes_help_page(server):
    for name in NODE_IDS:
        assert server.get(f"/extensions/u1-style-studio/docs/{name}.md").startswith("# "), name


def test_lora_spec_counts_what_a_preset_trains(server):
    result = server.run(_lora_spec(model="U1-8B", preset="attn_mlp", spec=""))
    summary = result["outputs"]["1"]["text"][0].splitlines()
    assert summary[0] == "U1-8B: 294 modules, 203,685,888 parameters"
    assert summary[1] == "q_proj_mot_gen: 42 modules, 22,020,096 parameters"
    assert len(summary) == 8


def test_lora_spec_reads_a_spec_of_ones_own(server):
    result = server.run(_lora_spec(model="U1.5-8B", preset="custom", spec="attn=r8; q_proj_mot_gen=off"))
    assert result["outputs"]["1"]["text"][0].splitlines()[0] == "U1.5-8B: 126 modules, 6,193,152 parameters"


def test_a_misspelt_target_is_reported_with_the_nearest(server):
    result = server.run(_lora_spec(model="U1-8B", preset="custom", spec="atn=r8"))
    assert result["status"]["status_str"] == "error"
    error = next(detail for event, detail in result["status"]["messages"] if event == "execution_error")
    assert error["exception_message"].strip().endswith("there is no target 'atn'; did you mean 'attn'?")


def test_a_lora_s_name_may_come_from_another_node(server):
    """What is connected is not known yet when ComfyUI asks whether the file has changed."""
    name = {"class_type": "PrimitiveString", "inputs": {"value": "built-in nano 8-step"}}
    model = {"class_type": "LoadU1Bf16Offload", "inputs": {"model": "built-in nano", "dtype": "auto"}}
    graph = {"1": name, "2": model}
    for node, inputs in {"3": ("LoadU1LoRA", {"strength": 1.0}), "4": ("StackUpstream8Step", {})}.items():
        kind, more = inputs
        graph[node] = {"class_type": kind, "inputs": {"model": ["2", 0], "lora": ["1", 0], **more}}
        graph[node + "0"] = {"class_type": "PreviewAny", "inputs": {"source": [node, 1]}}
    before = len(server.log)
    result = server.run(graph)
    assert result["status"]["status_str"] == "success", result["status"]
    assert "WARNING" not in server.log[before:]


def _lora_spec(**inputs: str) -> dict:
    return {"1": {"class_type": "LoRASpec", "inputs": {"dropout": 0.0, **inputs}}}
