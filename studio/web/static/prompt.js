// The prompt: Ctrl+Enter generates, words are completed, and an empty one is asked about.
const studio = window.studio = window.studio || {};
const LEAST = 2, MOST = 8;

// Puts text into a field as if it had been typed.
studio.say = (field, text) => {
  const kind = field.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
  Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, text);
  field.dispatchEvent(new Event('input', {bubbles: true}));
  field.focus();
  field.setSelectionRange?.(text.length, text.length);
};

const bare = (word) => word.toLowerCase().replace(/[<>]/g, '');
function pairs(word) {
  const all = bare(word), found = [];
  for (let i = 0; i < all.length - 1; i += 1) found.push(all.slice(i, i + 2));
  return found.length ? found : [all];
}
// Words that are spelled like one, the nearest first: shares of pairs of letters (Dice).
studio.close = (word, words) => {
  const own = pairs(word);
  return words
    .map((one) => { const theirs = pairs(one); return [2 * own.filter((pair) => theirs.includes(pair)).length / (own.length + theirs.length), one]; })
    .filter(([share]) => share >= 0.55)
    .sort((a, b) => b[0] - a[0])
    .map(([, one]) => one);
};

// -- completing ---------------------------------------------------------------------------------------------------
let list, field, chosen = -1;

function built() {
  if (list) return list;
  list = Object.assign(document.createElement('ul'), {className: 'complete', id: 'complete', hidden: true});
  list.setAttribute('role', 'listbox');
  list.setAttribute('aria-label', 'Words that go on so');
  document.body.append(list);
  return list;
}

function begun(node) {
  const head = node.value.slice(0, node.selectionStart ?? node.value.length);
  return (head.match(/(<[^<>\s]*|[\p{L}\p{N}-]+)$/u) || [''])[0];
}

function close() {
  if (!list || list.hidden) return;
  list.hidden = true;
  field?.removeAttribute('aria-activedescendant');
  chosen = -1;
}

function offer(node) {
  const start = begun(node), told = studio.words || {};
  const learned = node.closest('.words-only') ? [] : told.learned || [];
  const all = [...learned, ...Object.values(told.things || {}).flat(), ...(told.colours || [])];
  const fits = (word) => word.toLowerCase() !== start.toLowerCase() &&
    (word.toLowerCase().startsWith(start.toLowerCase()) || (word.startsWith('<') && bare(word).startsWith(bare(start))));
  const found = start.length >= LEAST || start === '<' ? all.filter(fits).slice(0, MOST) : [];
  if (!found.length) return close();
  field = node;
  chosen = -1;
  built().replaceChildren(...found.map((word, index) => {
    const item = Object.assign(document.createElement('li'), {textContent: word, id: `complete-${index}`, translate: false});
    item.setAttribute('role', 'option');
    item.setAttribute('aria-selected', 'false');
    item.addEventListener('pointerdown', (event) => { event.preventDefault(); take(word); });
    return item;
  }));
  const frame = node.getBoundingClientRect();
  Object.assign(list.style, {left: `${frame.left + scrollX}px`, top: `${frame.bottom + scrollY + 2}px`, minWidth: `${Math.min(240, frame.width)}px`});
  list.hidden = false;
  node.setAttribute('aria-autocomplete', 'list');
  node.setAttribute('aria-controls', 'complete');
}

function take(word) {
  const end = field.selectionStart ?? field.value.length, start = end - begun(field).length, tail = field.value.slice(end);
  const gap = tail.startsWith(' ') || field.closest('.words-only') ? '' : ' ';
  studio.say(field, field.value.slice(0, start) + word + gap + tail);
  field.setSelectionRange(start + word.length + 1, start + word.length + 1);
  close();
}

function move(way) {
  chosen = (chosen + way + list.children.length + (chosen < 0 && way < 0 ? 1 : 0)) % list.children.length;
  [...list.children].forEach((one, index) => one.setAttribute('aria-selected', String(index === chosen)));
  field.setAttribute('aria-activedescendant', `complete-${chosen}`);
}

const completes = (node) => node.matches?.('.completing textarea, .completing input');
document.addEventListener('input', (event) => { if (completes(event.target) && event.isTrusted) offer(event.target); });
document.addEventListener('focusout', close);
document.addEventListener('scroll', close, true);

document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    const go = event.target.closest('[role=tabpanel]')?.querySelector('button.go:not(:disabled)');
    if (go) { event.preventDefault(); event.stopPropagation(); close(); event.target.blur(); event.target.focus(); go.click(); }
    return;
  }
  if (!list || list.hidden || event.target !== field) return;
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') move(event.key === 'ArrowDown' ? 1 : -1);
  else if (event.key === 'Escape') close();
  else if (event.key === 'Enter' && chosen >= 0) take(list.children[chosen].textContent);
  else return;
  event.preventDefault();
  event.stopPropagation();
}, true);

// -- an empty prompt ----------------------------------------------------------------------------------------------
const any = (words) => words[Math.floor(Math.random() * words.length)];
const article = (word) => (/^[aeiou]/.test(word) ? 'an ' : 'a ') + word;

function surprise() {
  const {things, colours, relations} = studio.words;
  const [one, two] = [0, 1].map(() => article(any(any(Object.values(things)))));
  return `${one} ${any(relations)} ${two} on ${article(any(colours))} background`;
}

function ask(go, node) {
  const box = document.createElement('dialog'), told = studio.words || {};
  box.className = 'question';
  box.innerHTML = '<p><b>The prompt is empty.</b> What is to be drawn?</p><div class="line"></div>';
  const offerings = [
    ['Let me write it', () => node.focus()],
    ['Draw without words', () => { go.dataset.wordless = '1'; go.click(); }],
  ];
  if (Object.keys(told.things || {}).length) offerings.unshift(['Surprise me', () => { studio.say(node, surprise()); setTimeout(() => go.click(), 50); }]);
  box.querySelector('.line').append(...offerings.map(([label, act], index) => {
    const button = Object.assign(document.createElement('button'), {type: 'button', className: index ? 'quiet' : 'quiet first', textContent: label});
    button.addEventListener('click', () => { box.close(); act(); });
    return button;
  }));
  box.addEventListener('close', () => box.remove());
  document.body.append(box);
  box.showModal();
}

document.addEventListener('click', (event) => {
  const go = event.target.closest?.('#go'), node = document.querySelector('#prompt textarea');
  if (!go || go.disabled || !node || node.value.trim()) return;
  if (go.dataset.wordless) { delete go.dataset.wordless; return; }
  event.preventDefault();
  event.stopImmediatePropagation();
  ask(go, node);
}, true);
