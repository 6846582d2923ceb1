"""`python -m trainers METHOD ...`: training by itself, also in several processes.

    accelerate launch --num_processes 2 -m trainers textual-inversion --images ... --token ... --init ...

The flags are those of `studio train`. `--batch` is that of each process.
"""

from __future__ import annotations

import os
import sys

from cyclopts import CycloptsError
from pydantic import ValidationError

from pipelines.console import print_anything
from pipelines.errors import ConfigError, StudioError
from pipelines.events import Event, Note, StepDone
from pipelines.request.request import problems
from trainers.commands import commands
from trainers.run import Run
from trainers.settings import Destination


def _say(event: Event) -> None:
    if isinstance(event, Note):
        print(event.text, file=sys.stderr, flush=True)
    elif isinstance(event, StepDone):
        terms = "  ".join(f"{name} {value:.6f}" for name, value in event.terms.items())
        print(f"{event.step}/{event.steps}  {terms}", file=sys.stderr, flush=True)


def _carry_out(run: Run) -> None:
    import torch

    from pipelines.models.loading import load
    from trainers.distributed import launched
    from trainers.loop.launch import narrowed, pausing, readings, train_and_save

    processes = launched()
    run.require_free()
    if processes.accelerator is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = processes.accelerator.device
    reading = readings(run).sound(run.data.skip_doubtful)
    components = load(run.where.base)
    run = run.with_recipe(components.family.name)
    if processes.count > 1 and processes.main:
        _say(Note(f"{processes.count} processes, {run.train.batch} pictures each"))
    with pausing() as asked:
        train_and_save(
            narrowed(components, run).to(device),
            run,
            reading.examples,
            on_event=_say,
            should_stop=asked,
            processes=processes,
        )
    if processes.main:
        for output in run.outputs:
            print(output)
    if processes.accelerator is not None:
        processes.accelerator.end_training()  # threads between processes would abort one that ends without it


def relaunched(arguments: list[str]) -> None:
    """Start as many processes as `accelerate launch --cpu` was asked for, which by itself starts one.

    It leaves several to MPI, and without MPI says nothing; torch's own launcher needs none. Does not return if it
    starts them.

    Raises:
        ConfigError: if it was asked for several and their number is nowhere to be read.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    if not asked or "WORLD_SIZE" in os.environ:
        return
    import psutil

    line = (
        " ".join(psutil.Process(os.getppid()).cmdline()).replace("=", " ").replace("-processes", "_processes").split()
    )
    if "--num_processes" not in line[:-1]:
        raise ConfigError(
            "accelerate starts several processes on a CPU only through MPI.",
            "Use torchrun --nproc_per_node 2 -m trainers ... in its place.",
        )
    count = line[line.index("--num_processes") + 1]
    port = os.environ.get("MASTER_PORT", "29500")
    launcher = ["torch.distributed.run", "--nproc_per_node", count, "--master_port", port, "-m", "trainers"]
    os.execv(sys.executable, [sys.executable, "-m", *launcher, *arguments])


def main(arguments: list[str]) -> int:
    """Run the command line; errors meant for people are one sentence and exit code 2."""
    print_anything()
    app = commands("trainers", _carry_out, Destination)
    try:
        relaunched(arguments)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except StudioError as error:
        print(f"trainers: {error}", file=sys.stderr)
        return 2
    except CycloptsError as error:
        cause = error.__cause__ or error.__context__
        said = problems(cause) if isinstance(cause, ValidationError) else str(error).replace("\n", " ")
        print(f"trainers: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
