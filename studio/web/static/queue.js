// The queue on every page: what is at work and what waits, in which order, and how long it takes.
const studio = window.studio = window.studio || {};
const PAUSE = 2000, KINDS = {generation: 'generations', training: 'runs', score: 'scores', import: 'imports', download: 'downloads', attention: 'attentions', caption: 'captions'};
const STATES = {running: 'at work', queued: 'waits', paused: 'paused'};
let drawer, timer, jobs = [], drawn = '';

function make(tag, fields, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

// A message in a corner that goes by itself.
studio.say_once = (text) => {
  const node = make('div', {className: 'said', textContent: text});
  node.setAttribute('role', 'status');
  document.body.append(node);
  setTimeout(() => node.remove(), 5000);
};

function called(job) {
  const {spec, kind} = job;
  if (kind === 'generation') return spec.request.prompt ? `“${spec.request.prompt}”` : 'Pictures';
  if (kind === 'training') return `${spec.dry_run ? 'Checking pictures for' : 'Teaching'} ${spec.settings.token}`;
  if (kind === 'score') return `Measuring ${spec.concept}`;
  if (kind === 'download') return `Fetching ${spec.model}`;
  if (kind === 'attention') return 'Looking where words look';
  if (kind === 'caption') return 'Writing captions';
  return 'Importing a file';
}

const spoken = (seconds) => (seconds < 60 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);
function left(job) {
  if (job.state !== 'running' || !job.step || !job.steps || !job.started) return '';
  const took = Date.now() / 1000 - job.started;
  return `about ${spoken(Math.max(1, took / job.step * (job.steps - job.step)))} left`;
}

async function ask(address) {
  const answer = await fetch(address, {method: 'POST'});
  if (!answer.ok) studio.say_once((await answer.json()).detail || 'That could not be done.');
  look();
}

function row(job, place, waiting) {
  const words = [STATES[job.state], job.steps ? (job.kind === 'download' ? `${job.step} of ${job.steps} MiB` : `step ${job.step} of ${job.steps}`) : '', left(job)].filter(Boolean).join(' · ');
  const button = (label, address, title) => {
    const node = make('button', {type: 'button', className: 'quiet', textContent: label, title});
    node.setAttribute('aria-label', `${title}: ${called(job)}`);
    node.dataset.act = address;
    node.addEventListener('click', () => ask(address));
    return node;
  };
  const acts = make('div', {className: 'line'});
  if (job.state === 'queued' && waiting > 1) {
    if (place > 0) acts.append(button('↑ First', `/api/v1/queue/${job.id}/first`, 'Do this first'));
    if (place < waiting - 1) acts.append(button('↓ Last', `/api/v1/queue/${job.id}/last`, 'Do this last'));
  }
  acts.append(button('Cancel', `/api/v1/${KINDS[job.kind]}/${job.id}/cancel`, 'Cancel'));
  return make('li', {}, make('b', {textContent: called(job)}), make('span', {className: 'hint', textContent: words}), acts);
}

function draw() {
  const count = document.querySelector('[data-do=queue]');
  if (count) count.textContent = jobs.length ? `Queue (${jobs.length})` : 'Queue';
  if (!drawer || drawer.hidden) return;
  const now = JSON.stringify(jobs.map((job) => [job.id, job.state, job.step, job.steps]));
  if (now === drawn) return;
  drawn = now;
  const focus = document.activeElement?.dataset.act;
  const waiting = jobs.filter((job) => job.state === 'queued');
  drawer.querySelector('ol').replaceChildren(...jobs.map((job) => row(job, waiting.indexOf(job), waiting.length)));
  drawer.querySelector('.none').hidden = !!jobs.length;
  if (focus) drawer.querySelector(`[data-act="${CSS.escape(focus)}"]`)?.focus();
}

async function look() {
  clearTimeout(timer);
  try {
    if (!document.hidden) {
      const answer = await fetch('/api/v1/queue');
      if (answer.ok) jobs = await answer.json();
      draw();
    }
  } catch { /* the server is away; it is asked again */ }
  timer = setTimeout(look, jobs.length || (drawer && !drawer.hidden) ? PAUSE : 2 * PAUSE);
}

function build() {
  drawer = make('aside', {className: 'drawer', id: 'queue', hidden: true});
  drawer.setAttribute('aria-label', 'Queue');
  const close = make('button', {type: 'button', className: 'quiet', textContent: '×'});
  close.setAttribute('aria-label', 'Close the queue');
  close.addEventListener('click', () => { drawer.hidden = true; document.querySelector('[data-do=queue]').focus(); });
  const tell = make('button', {type: 'button', className: 'quiet', textContent: 'Notify me when done'});
  tell.hidden = !window.Notification || Notification.permission === 'granted';
  tell.addEventListener('click', async () => { tell.hidden = (await Notification.requestPermission()) === 'granted'; });
  drawer.append(make('div', {className: 'line'}, make('b', {textContent: 'Queue'}), close),
    make('p', {className: 'hint none', textContent: 'Nothing is at work, and nothing waits.'}), make('ol', {}), tell);
  drawer.addEventListener('keydown', (event) => { if (event.key === 'Escape') close.click(); });
  document.body.append(drawer);
}

document.addEventListener('click', (event) => {
  if (!event.target.closest?.('[data-do=queue]')) return;
  if (!drawer) build();
  drawer.hidden = !drawer.hidden;
  drawn = '';
  look();
  if (!drawer.hidden) drawer.querySelector('button').focus();
});
document.addEventListener('visibilitychange', look);
look();
