"""The pack in a running ComfyUI: it loads cleanly, lists its nodes, and they run."""

import json
import re


def test_pack_is_imported_without_a_complaint(server):
    assert re.search(r"seconds: \S*custom_nodes/u1-style-studio", server.log.replace("\\", "/")), server.log
    assert "Traceback" not in server.log
    complaints = [line for line in server.log.splitlines() if "u1" in line.lower() and re.search("WARN|ERROR", line)]
    assert complaints == []


def test_nodes_are_listed_with_help_on_every_input_and_output(server):
    nodes = {name: info for name, info in json.loads(server.get("/object_info")).items() if name.startswith("U1")}
    assert list(nodes) == ["U1LoRASpec"]
    for info in nodes.values():
        assert info["python_module"] == "custom_nodes.u1-style-studio"
        assert info["description"]
        assert info["search_aliases"]
        assert all(options["tooltip"] for _, options in info["input"]["required"].values())
        assert all(info["output_tooltips"])


def test_the_browser_gets_each_nodes_help_page(server):
    assert server.get("/extensions/u1-style-studio/docs/U1LoRASpec.md").startswith("# U1 LoRA Spec")


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


def _lora_spec(**inputs: str) -> dict:
    return {"1": {"class_type": "U1LoRASpec", "inputs": inputs}}
