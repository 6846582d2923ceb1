"""Acts on a page that wait for what they need, never for a time."""

from __future__ import annotations

from playwright.sync_api import TimeoutError, expect

SLOW = 180_000
"""Milliseconds that anything waited for may take: two cores at other work, and processes that load torch."""

expect.set_options(timeout=SLOW)

LISTENING = """
  const plain = window.fetch, ended = new Set();
  window.asked = new Map();  // question -> its path; a number until the server has given it an id
  let number = 0;
  function heard(answer) {  // before the page hears it, which may end the stream at once
    const decoder = new TextDecoder();
    let text = '';
    const ear = new TransformStream({
      transform(chunk, controller) {
        const lines = (text + decoder.decode(chunk, {stream: true})).split('\\n');
        text = lines.pop();
        for (const line of lines.filter(one => one.startsWith('data:'))) {
          const {msg, event_id} = JSON.parse(line.slice(5));
          if (msg === 'process_completed') { ended.add(event_id); window.asked.delete(event_id); }
        }
        controller.enqueue(chunk);
      }
    });
    return new Response(answer.body.pipeThrough(ear), {status: answer.status, headers: answer.headers});
  }
  window.fetch = async (...given) => {
    const {pathname} = new URL(given[0]?.url ?? given[0], window.location);
    const question = number++;
    if (pathname.endsWith('/queue/join')) window.asked.set(question, pathname);
    try {
      const answer = await plain(...given);
      if (pathname.endsWith('/queue/data') && answer.ok) return heard(answer);
      if (pathname.endsWith('/queue/join') && answer.ok) {
        const {event_id} = await answer.clone().json();
        if (!ended.has(event_id)) window.asked.set(event_id, `${pathname} ${given[1]?.body ?? ''}`.slice(0, 200));
      }
      return answer;
    } finally {
      window.asked.delete(question);
    }
  };
"""
"""Keeps count, in a page, of what it asked its server and has no whole answer to.

The end of the stream that answers come by says nothing: when the last answer comes before the word that it was asked
for has arrived, the page opens a stream with nothing to come, which stays open.
"""


def questions(page):
    """Keep count of what a page asks its server from now on; for `answered`."""
    page.add_init_script(LISTENING)


def acquainted(page):
    """Let a page know that its visitor has seen the tour."""
    page.add_init_script("localStorage.setItem('studio.tour', '1')")


def unfold(page, fold):
    """Open what lies beneath a heading."""
    page.locator(f"#{fold} .fold-head").click()
    expect(page.locator(f"#{fold} .fold-head")).to_have_attribute("aria-expanded", "true")


def answered(page):
    """Wait until no answer of the server is outstanding."""
    for _ in range(2):  # an answer may lead to the next question
        try:
            page.wait_for_function("() => window.asked.size === 0", timeout=SLOW)
        except TimeoutError:
            late = page.evaluate("[...window.asked.values()].join(', ')")
            raise AssertionError(f"waited {SLOW / 1000:.0f} s for the answers to {late}") from None
        drawn(page)


def drawn(page):
    """Wait until a page is drawn anew; unlike `evaluate` this has the page's limit."""
    page.wait_for_function("() => new Promise(done => requestAnimationFrame(() => done(true)))")


def go(page, tab):
    """Open a page and wait until it is shown."""
    page.get_by_role("tab", name=tab, exact=True).click()
    expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("[role=tabpanel]:visible")).to_have_count(1)


def choose(page, label, option):
    """Choose from a list, and wait until it is gone: it fades, and the next one would stand beside it."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("listbox")).to_have_count(0)


def easel(page, painter):
    """Return the canvas, once its picture is there."""
    expect(page.locator(f"{painter} .easel")).to_have_attribute("aria-busy", "false")
    return page.locator(f"{painter} .over")
