"""Names of settings, ways to keep to the prompt, examples and things to try, as Generate offers them."""

from __future__ import annotations

from typing import Any

LABELS = {
    "inpaint": "Start from a picture",
    "negative_prompt": "What to avoid",
    "also": "Further prompts",
    "guidance.scale": "Guidance scale",
    "guidance.rescale": "Guidance rescale",
    "guidance.start": "Guidance from",
    "guidance.stop": "Guidance until",
    "guidance.preset": "Guidance formula",
    "guidance.schedule": "Course of the scale",
    "scheduler": "Sampler",
    "spacing": "Noise levels",
    "eta": "Eta",
    "clip_skip": "Clip skip",
    "steps": "Steps",
    "width": "Width",
    "height": "Height",
    "enlarge.factor": "Enlarge",
    "enlarge.strength": "Drawn anew",
    "enlarge.by": "Enlarge by",
    "enlarge.upscaler": "Upscaler",
    "excite.words": "Words that must be seen",
    "excite.strength": "Strength of their correction",
}
CLOSENESS = ("guidance.scale", "guidance.rescale", "guidance.start", "guidance.stop")
"""Fields that a choice of `PRESETS` sets."""
PRESETS: dict[str, dict[str, float]] = {
    "normally": {},
    "not at all": {"scale": 1.0},
    "loosely": {"scale": 1.5},
    "closely": {"scale": 4.0, "rescale": 0.7},
    "in the middle of the drawing only": {"start": 0.2, "stop": 0.8},
}
EXAMPLES: tuple[tuple[str, str, tuple[dict[str, Any], ...]], ...] = (
    ("A fox and a house", "a fox to the left of a house on a yellow background", ()),
    ("Three penguins", "three of a penguin on a blue background", ()),
    (
        "Two boxes",
        "a cat and a pizza on a green background",
        (
            {"phrase": "a cat", "box": [0.05, 0.4, 0.5, 0.92]},
            {"phrase": "a pizza", "box": [0.55, 0.08, 0.95, 0.48]},
        ),
    ),
)
TRIES = ("on a teal background", "to the left of a house")
"""Ends of the prompts with which a learned thing is tried."""
