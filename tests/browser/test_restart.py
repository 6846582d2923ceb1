"""A training that is watched on the page while its server is killed, and then everything: it ends well."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlparse

from playwright.sync_api import expect

from studio.jobs.store import Ledger
from tests import waiting
from tests.browser.waiting import SLOW, acquainted, go
from tests.studio.test_serve import Server, processes
from tests.waiting import LIMIT

STEPS = 100
KEPT = 50
"""Steps between two states that are kept."""


DEAF = """window.quietSeconds = 2;
const plain = window.fetch;
window.fetch = async (...asked) => {
  const answer = await plain(...asked);
  if (!String(asked[0]?.url ?? asked[0]).includes('queue/data')) return answer;
  const heard = new TransformStream({transform: (chunk, out) => { if (!window.deaf) out.enqueue(chunk); }});
  return new Response(answer.body.pipeThrough(heard), answer);
};
window.EventSource = undefined;
"""
"""Lets a page lose the news of its stream while `window.deaf` is set, and look again after 2 seconds."""


def steps_of(record, job):
    return [event.data["step"] for event in record.events(job, kinds=("step",))]


def until(record, job, step):
    """Wait until a training has come so far."""
    end = time.monotonic() + SLOW / 1000
    while record.get(job).step < step:
        assert time.monotonic() < end, record.get(job)
        time.sleep(0.02)


def test_a_training_on_the_page_outlives_its_server_and_its_process(tmp_path, chromium):
    server = Server(tmp_path, page=True)
    port = urlparse(server.address).port
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    acquainted(page)
    page.add_init_script(DEAF)
    progress, record = page.locator("#training-progress"), Ledger(tmp_path / "jobs.sqlite")

    def again():
        """The server is there again at the same address, and the page is loaded anew."""
        server = Server(tmp_path, page=True, port=port)
        page.reload()
        go(page, "Teach")
        return server

    try:
        page.goto(server.address)
        go(page, "Teach")
        page.get_by_label("One thing, quick").check()
        page.locator("#example-wolf").click()
        expect(page.locator(".rows img")).to_have_count(4)
        page.locator("#steps textarea, #steps input").first.fill(str(STEPS))
        page.locator("#teach").click()
        expect(progress).to_contain_text(f"of {STEPS}")
        (job,) = parse_qs(urlparse(page.url).query)["training"]
        (worker,) = processes(tmp_path)
        server.kill()
        until(record, job, record.get(job).step + 10)  # it goes on without a server
        worker.suspend()  # however long the next one takes, the training is not over by then
        server = again()
        expect(progress).to_contain_text(f"of {STEPS}")
        assert [one.pid for one in processes(tmp_path)] == [worker.pid], "there is a second one beside it"
        worker.resume()
        until(record, job, KEPT + 10)
        worker.suspend()
        server.kill()
        worker.kill()  # both, as when the power fails
        worker.wait(LIMIT)
        before = steps_of(record, job)
        assert before == list(range(10, before[-1] + 1, 10)), "the training felt the end of its first server"
        assert record.get(job).state == "running", "it was over too soon to be killed"
        server = again()
        expect(progress).to_contain_text(f"of {STEPS}")
        page.evaluate("window.deaf = true")  # the end of the training is news that is lost on the way
        waiting.until(lambda: record.get(job).ended, "the end of the training")
        page.locator("#training-progress .again").click()  # what was looked at again was not answered either
        expect(progress).to_contain_text("Done")
        expect(page.locator("#curves")).to_contain_text("denoise")
        steps = steps_of(record, job)
        assert sorted(set(steps)) == list(range(10, STEPS + 1, 10))
        twice = [step for number, step in enumerate(steps) if step in steps[:number]]
        assert all(step > KEPT for step in twice) and len(twice) <= 5, "it was begun anew, not gone on with"
        notes = [event.data["text"] for event in record.events(job, kinds=("note",))]
        assert len([note for note in notes if "without a word" in note]) == 1
        assert (tmp_path / "concepts" / "my-wolf.safetensors").is_file()
        server.process.terminate()
        assert server.process.wait(60) is not None and not processes(tmp_path)
    finally:
        context.close()
        record.close()
        server.kill()
        for process in processes(tmp_path):
            process.kill()
