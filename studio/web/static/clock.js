// The clock of what is at work moves each second; the title, and a notification if allowed, say when it is done.
// What is at work and silent for long is looked at: the stream of its news may have been lost.
const QUIET = window.quietSeconds ?? 20;
const TITLE = document.title || 'Prompt Studio';
const seen = new Map();  // panel -> state of its job

const spoken = (seconds) => {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
};

function tick() {
  for (const node of document.querySelectorAll('[data-seconds]')) {
    if (node.told !== node.dataset.seconds) {  // the server has told the time again, or it is another job
      node.told = node.dataset.seconds;
      node.born = performance.now() - 1000 * Number(node.told);
    }
    node.textContent = spoken((performance.now() - node.born) / 1000) + ' so far';
  }
}

function listen() {
  const now = performance.now() / 1000;
  for (const node of document.querySelectorAll('.progress:is(.running, .queued)')) {
    if (node.heard !== node.dataset.told) {  // each news tells its time; the framework keeps the node
      Object.assign(node, {heard: node.dataset.told, since: now, looks: 0});
      node.querySelector('.again')?.remove();
    }
    if (now - node.since < QUIET) continue;
    node.since = now;
    const panel = node.closest('[id$="-progress"]');
    document.getElementById(panel?.id.replace(/-progress$/, '-look'))?.click();
    node.looks += 1;
    if (node.looks === 3) offer(node);  // a look is answered, however long a step takes: nothing arrives any more
  }
}

function offer(node) {
  const again = document.createElement('button');
  again.className = 'quiet again';
  again.textContent = 'No news arrive any more: load the page again';
  again.onclick = () => window.location.reload();
  node.append(again);
}

function done(what) {
  if (document.hasFocus()) return;
  const said = window.studio.translated(what);
  document.title = `${said} - ${TITLE}`;
  if (window.Notification?.permission === 'granted') new Notification('Prompt Studio', {body: said});
}

function look() {
  for (const node of document.querySelectorAll('.progress[data-job]')) {
    const place = node.closest('[id]')?.id, before = seen.get(place), now = `${node.dataset.job} ${node.dataset.state}`;
    if (before !== now) {
      const was = before && before.startsWith(node.dataset.job) && /(running|queued)$/.test(before);
      if (was && node.dataset.state === 'done') done(node.dataset.done || 'Done');
      if (was && node.dataset.state === 'failed') done('Failed');
      seen.set(place, now);
    }
  }
}
window.addEventListener('focus', () => { document.title = TITLE; });
setInterval(() => { tick(); listen(); }, 1000);
// Each change of a panel is looked at: a job may begin and end within a second.
new MutationObserver(look).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-job', 'data-state']});
