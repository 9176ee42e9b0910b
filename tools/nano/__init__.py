"""The world that U1-nano is trained on: drawn scenes, captions, questions, edits and styles, and what measures them."""
