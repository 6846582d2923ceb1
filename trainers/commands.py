"""One command for each method, its flags derived from the settings. A method, and torch, is loaded when it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from cyclopts import App, Parameter

from trainers.method_settings import configs
from trainers.methods import ENROLLED, method
from trainers.settings import DataConfig, TrainConfig


def commands(name: str, carry_out: Callable[..., None], more: Mapping[str, Any]) -> App:
    """Return a command line with a command for each method.

    Args:
        name: of the program.
        carry_out: called with the method, its config, `data` and `train`, and one value for each of `more`.
        more: name -> further settings, classes whose fields all have defaults.
    """
    app = App(
        name=name,
        help="Learn a concept from a folder of pictures.",
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=()),
    )
    for key in ENROLLED:
        app.command(_command(key, carry_out, more), name=key)
    return app


def _command(name: str, carry_out: Callable[..., None], more: Mapping[str, Any]) -> Any:
    kinds: dict[str, Any] = {"config": configs()[name], "data": DataConfig, "train": TrainConfig, **more}
    needed = ("config", "data")

    def command(**settings: Any) -> None:
        # What nothing was said about is not passed on.
        others = {key: kind() for key, kind in kinds.items() if key not in (*needed, *settings)}
        carry_out(method(name), **others, **settings)

    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if key in needed else kind(),
            annotation=Annotated[kind, Parameter(name="*")],
        )
        for key, kind in kinds.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = ENROLLED[name].does
    return command
