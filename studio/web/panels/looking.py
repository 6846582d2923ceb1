"""Panel of where words look: the attention of each word of a prompt over a picture of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from pipelines.errors import StudioError
from studio.jobs.jobs import Jobs
from studio.web.components import looked_words
from studio.web.panels.answer import ADDRESS, AnswerPanel
from studio.web.panels.comparing import picture_of
from studio.web.panels.following import Following, told
from studio.web.panels.watching import JobMessages, progress


class Looking(Following):
    """A panel beneath an answer; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        answer: with the pictures.
        number: of the answer's action that asks.
    """

    def __init__(self, jobs: Jobs, answer: AnswerPanel, number: int) -> None:
        super().__init__(jobs, "attention", "attention")
        self.answer, self.number = answer, number
        self.progress = gr.HTML(elem_id="attention-progress", js_on_load=None)
        self.words = looked_words(elem_id="attention-words")

    def wire(self) -> None:
        """Ask and follow when the action is chosen; show nothing once other pictures are asked for."""
        for event in self.answer.used(self.number, self.ask, [self.answer.job, self.answer.chosen], [self.job]):
            self.followed(event, api_visibility="private")
        self.answer.asking.success(self.cleared, None, [self.job, *self.said()], api_visibility="private")

    def cleared(self) -> tuple[Any, ...]:
        """Return an empty panel, and no job."""
        return "", *self.nothing()

    def ask(self, generation: str, chosen: int) -> str:
        """Queue the attention of a picture, unless it is known or at work; return the id of the job."""
        try:
            path = picture_of(self.jobs, generation, int(chosen))
            number = self.jobs.get(generation).results.index(path.relative_to(self.jobs.folder).as_posix())
            key = f"attention of {generation}/{number}"
            before = self.jobs.ledger.keyed(key)
            if before is not None and (before.state == "done" or not before.ended):
                return before.id
            return self.jobs.submit_attention(generation, number, None if before else key).id
        except StudioError as error:
            raise told(error) from None

    def said(self) -> Sequence[Any]:
        """The components that show progress and words."""
        return [self.progress, self.words]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        return "", None

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return progress while it is at work, and then the words."""
        job = seen.job
        if job.state != "done":
            return progress(seen), None
        found = self.jobs.events(job.id, kinds=("words",))
        words = found[-1].data["words"] if found else ()
        own = f"{ADDRESS}/attentions/{job.id}/pictures"
        picture = f"{ADDRESS}/generations/{job.spec['generation']}/pictures/{job.spec['picture']}"
        return "", {
            "picture": picture,
            "words": [one | {"src": f"{own}/{number}"} for number, one in enumerate(words)],
        }
