// A "?" with a sentence at each control, and the tour of a first visit.
const studio = window.studio = window.studio || {};
const {controls, tour} = JSON.parse(document.getElementById('studio-help').textContent);
const SEEN = 'studio.tour', FIRST = !location.search;  // no tour where a link leads to something

function make(tag, fields, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

// -- help ---------------------------------------------------------------------------------------------------------
const bubble = make('div', {className: 'bubble', id: 'bubble'});
bubble.setAttribute('popover', '');
bubble.setAttribute('role', 'note');

function tell(name, button) {
  const [title, says] = controls[name];
  bubble.replaceChildren(make('b', {textContent: title}), make('p', {textContent: says}),
    make('a', {href: `/help#${name}`, target: '_blank', rel: 'noopener', textContent: `More on ${title}`}));
  bubble.showPopover();
  const frame = button.getBoundingClientRect(), own = bubble.getBoundingClientRect();
  bubble.style.left = `${Math.max(8, Math.min(frame.left - 8, innerWidth - own.width - 8))}px`;
  bubble.style.top = `${frame.bottom + own.height + 8 > innerHeight ? frame.top - own.height - 4 : frame.bottom + 4}px`;
}

function add() {
  for (const [name, [title]] of Object.entries(controls)) {
    const place = document.getElementById(name);
    if (!place || place.querySelector(':scope > .ask-help')) continue;
    const button = make('button', {type: 'button', className: 'ask-help', textContent: '?'});
    button.setAttribute('aria-label', `Help: ${title}`);
    button.addEventListener('click', (event) => { event.stopPropagation(); event.preventDefault(); tell(name, button); });
    place.append(button);
  }
}

// -- the tour -----------------------------------------------------------------------------------------------------
let card, at = 0;

function finish() {
  document.querySelectorAll('.toured').forEach((one) => one.classList.remove('toured'));
  card?.remove();
  card = null;
  localStorage.setItem(SEEN, '1');
}

function show() {
  document.querySelectorAll('.toured').forEach((one) => one.classList.remove('toured'));
  const [place, title, says] = tour[at], node = document.querySelector(place), last = at === tour.length - 1;
  node?.classList.add('toured');
  node?.scrollIntoView({block: 'nearest'});
  const next = make('button', {type: 'button', className: 'quiet first', textContent: last ? 'Start' : 'Next'});
  const skip = make('button', {type: 'button', className: 'quiet', textContent: 'Skip'});
  next.addEventListener('click', () => { if (last) return finish(); at += 1; show(); card.querySelector('.first').focus(); });
  skip.addEventListener('click', finish);
  card.replaceChildren(make('p', {}, make('b', {textContent: title}), make('span', {className: 'hint', textContent: ` ${at + 1} of ${tour.length}`})),
    make('p', {textContent: says}), make('div', {className: 'line'}, next, ...(last ? [] : [skip])));
}

studio.tour = () => {
  finish();
  at = 0;
  document.querySelector('#pages [role=tab]')?.click();
  card = make('aside', {className: 'tour'});
  card.setAttribute('aria-label', 'Tour');
  document.body.append(card);
  show();
};

function turn(head, open) {
  head.setAttribute('aria-expanded', String(open));
  head.closest('.fold').classList.toggle('open', open);
}
studio.unfold = (name) => {
  const head = document.querySelector(`#${name} .fold-head`);
  if (head) turn(head, true);
};
document.addEventListener('click', (event) => {
  const head = event.target.closest?.('.fold-head');
  if (head) turn(head, head.getAttribute('aria-expanded') !== 'true');
});

document.addEventListener('click', (event) => { if (event.target.closest?.('[data-do=tour]')) studio.tour(); });
document.addEventListener('keydown', (event) => { if (card && event.key === 'Escape') finish(); });

const opened = setInterval(() => {
  if (!document.querySelector('#prompt textarea')) return;
  clearInterval(opened);
  document.body.append(bubble);
  add();
  setInterval(add, 700);  // pages are built when they are opened
  if (!localStorage.getItem(SEEN) && FIRST) studio.tour();
}, 100);
