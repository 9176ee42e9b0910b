"""Workflows of the pack's nodes: what each node does, as plain functions, with or without ComfyUI around them."""
