"""Names of samplers and of spacings of noise levels, here and in other programs. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

from pipelines.request.request import Scheduler, Spacing

SAMPLERS: Mapping[Scheduler, str] = MappingProxyType(
    {
        "ddim": "DDIM",
        "dpm++2m": "DPM++ 2M",
        "unipc": "UniPC",
        "euler": "Euler",
        "euler-a": "Euler a",
        "lcm": "LCM",
    }
)
"""AUTOMATIC1111's names of the samplers."""

SPACINGS: Mapping[Spacing, str] = MappingProxyType({"karras": "Karras", "sgm": "SGM Uniform"})
"""AUTOMATIC1111's names of the spacings."""

SPACED: Mapping[Spacing, tuple[Scheduler, ...]] = MappingProxyType(
    {
        "own": get_args(Scheduler),
        "karras": ("dpm++2m", "unipc", "euler"),
        "sgm": ("ddim", "dpm++2m", "unipc", "euler", "euler-a"),
    }
)
"""The samplers that can have each spacing."""

_ELSEWHERE: Mapping[str, Scheduler] = MappingProxyType(  # in ComfyUI and InvokeAI
    {
        "dpmpp_2m": "dpm++2m",
        "uni_pc": "unipc",
        "uni_pc_bh2": "unipc",
        "euler_ancestral": "euler-a",
        "euler_a": "euler-a",
    }
)
_KARRAS = (" karras", "_karras", "_k")
"""Endings of samplers that are spaced so, in AUTOMATIC1111 before 1.9 and in InvokeAI."""


def sampler_of(name: str) -> Scheduler | None:
    """Return the sampler that another program calls so, whatever its case and the spacing behind it; or None.

    >>> sampler_of("DPM++ 2M Karras"), sampler_of("euler_ancestral"), sampler_of("PLMS")
    ('dpm++2m', 'euler-a', None)
    """
    wanted = _plain(name)
    for ours, theirs in SAMPLERS.items():
        if wanted in {ours.lower(), theirs.lower()}:
            return ours
    return _ELSEWHERE.get(wanted)


def spacing_of(name: str, sampler: str = "") -> str:
    """Return the spacing that another program names, alone or behind a sampler; "" is the default, unknown ones stay.

    >>> spacing_of("SGM Uniform"), spacing_of("", "DPM++ 2M Karras"), spacing_of("normal"), spacing_of("Beta")
    ('sgm', 'karras', '', 'beta')
    """
    wanted = name.strip().lower().replace("_", " ")
    if wanted in ("", "automatic", "uniform", "normal"):
        return "karras" if sampler.strip().lower() != _plain(sampler) else ""
    return {their.lower(): ours for ours, their in SPACINGS.items()}.get(wanted, wanted)


def able(sampler: str | None, spacing: str) -> bool:
    """Return whether one of our samplers supports one of our spacings."""
    return any(sampler in samplers for name, samplers in SPACED.items() if name == spacing)


def _plain(name: str) -> str:
    plain = name.strip().lower()
    return next((plain.removesuffix(end) for end in _KARRAS if plain.endswith(end)), plain)
