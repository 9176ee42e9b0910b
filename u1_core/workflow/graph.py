"""Runs workflows in API form without ComfyUI: our nodes, and those of its own that bring pictures in and out."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from u1_core.data.pictures import open_picture, save_png
from u1_core.errors import U1Error, nearest
from u1_core.workflow import dataset, drawing, loras, training
from u1_core.workflow.handles import Result
from u1_core.workflow.studio import Studio, Watch

Node = Callable[..., Result]

NODES: dict[str, Node] = {
    "LoadU1Bf16Offload": loras.load_model,
    "U1StyleDataset": dataset.dataset,
    "BuildPrefixKVCache": dataset.prefix_cache,
    "LoRASpec": training.lora_spec,
    "TrainStyleLoRA": training.train_style_lora,
    "U1TrainingRun": training.training_run,
    "StackUpstream8Step": loras.stack_8step,
    "LoadU1LoRA": loras.load_lora,
    "ExportU1LoRA": loras.export_lora,
    "U1Sample": drawing.sample,
    "U1Edit": drawing.edit_pictures,
    "U1Interleave": drawing.tell_with_pictures,
    "U1Ask": drawing.answer,
    "U1CaptionDataset": drawing.caption_folder,
    "U1CompareGrid": drawing.compare,
}
"""The pack's nodes: what each does with its inputs. `nodes/` wraps the same functions for ComfyUI."""


def _load_image(studio: Studio, watch: Watch, *, image: str, **_: Any) -> Result:
    path = studio.places.input / image.removesuffix(" [input]")
    return Result((drawing.images_to_tensor([open_picture(path)]),))


def _save_image(studio: Studio, watch: Watch, *, images: Any, filename_prefix: str = "ComfyUI") -> Result:
    stem = studio.places.output / filename_prefix
    stem.parent.mkdir(parents=True, exist_ok=True)
    settings = {"workflow": training.plain_workflow(watch.workflow or {})}
    paths = [
        save_png(picture, stem.with_name(f"{stem.name}_{number:05}_.png"), settings)
        for number, picture in enumerate(drawing.from_image_tensor(images), start=1)
    ]
    return Result((), "\n".join(map(str, paths)))


def _preview(studio: Studio, watch: Watch, **_: Any) -> Result:
    return Result(())


OTHERS: dict[str, Node] = {
    "LoadImage": _load_image,
    "SaveImage": _save_image,
    "PreviewImage": _preview,
    "PreviewAny": _preview,
}
"""ComfyUI's own nodes that are understood here."""


def run_workflow(
    studio: Studio,
    workflow: Mapping[str, Any],
    watch: Watch | None = None,
    on_node: Callable[[str, str, Result], None] = lambda number, kind, result: None,
) -> dict[str, Result]:
    """Run every node, each after those that it takes its inputs from; node number -> what it gave.

    A run that a node starts is waited for where ComfyUI would go on, so that what follows has its LoRA. `on_node` is
    called with (number, class, result) as each is done. Raises U1Error naming the node.
    """
    _check(workflow)
    watch = replace(watch or Watch(), workflow=workflow)
    results: dict[str, Result] = {}
    for number in _in_order(workflow):
        kind = workflow[number]["class_type"]
        inputs = {
            name: results[value[0]].values[value[1]] if _is_link(value) else value
            for name, value in workflow[number].get("inputs", {}).items()
        }
        if kind == "TrainStyleLoRA":
            inputs["wait"] = True
        try:
            results[number] = {**NODES, **OTHERS}[kind](studio, watch, **inputs)
        except (U1Error, IndexError) as problem:
            raise U1Error(f"node {number} ({kind}): {problem}") from None
        on_node(number, kind, results[number])
    return results


def _check(workflow: Mapping[str, Any]) -> None:
    """Raise U1Error unless every node is known, with inputs it has and none missing."""
    known = {**NODES, **OTHERS}
    for number, node in workflow.items():
        if not isinstance(node, Mapping) or "class_type" not in node:
            raise U1Error(
                f"{number!r} is no node with a class_type: export the workflow in API form (File, Export (API))"
            )
        kind, inputs = node["class_type"], node.get("inputs", {})
        if kind not in known:
            raise U1Error(f"node {number}: {kind!r} is not a node that runs without ComfyUI{nearest(kind, known)}")
        parameters = inspect.signature(known[kind]).parameters
        open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        names = {name: one for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
        for name in inputs:
            if name not in names and not open_ended:
                raise U1Error(f"node {number} ({kind}): there is no input {name!r}{nearest(name, names)}")
        for name, one in names.items():
            if one.default is one.empty and name not in inputs:
                raise U1Error(f"node {number} ({kind}): its input {name!r} is missing")


def _in_order(workflow: Mapping[str, Any]) -> list[str]:
    """Node numbers, each after those it depends on; else as they stand."""
    ordered: list[str] = []
    open_nodes: list[str] = []

    def visit(number: str) -> None:
        if number in ordered:
            return
        if number not in workflow:
            raise U1Error(f"node {open_nodes[-1]} takes an input from node {number}, which is not there")
        if number in open_nodes:
            raise U1Error(f"nodes {', '.join(open_nodes[open_nodes.index(number) :])} wait for each other")
        open_nodes.append(number)
        for value in workflow[number].get("inputs", {}).values():
            if _is_link(value):
                visit(value[0])
        open_nodes.pop()
        ordered.append(number)

    for number in workflow:
        visit(number)
    return ordered


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
