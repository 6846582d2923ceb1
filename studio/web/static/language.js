// The language of the page. English sentences are the keys of a catalogue, /languages/NAME.json; they are looked up
// wherever they appear, now and later: in texts, placeholders, titles, names for screen readers and chosen options.
// What the server is sent stays as it is. `translate="no"` marks texts that people wrote or named, and the class
// `notranslate` whole components of such. `{0}` stands for a value that stays as it is, `{0+}` for one that is a
// sentence as well.
const studio = window.studio = window.studio || {};
const told = JSON.parse(document.getElementById('studio-languages').textContent);
const KEY = 'studio.language', ATTRIBUTES = ['placeholder', 'title', 'aria-label', 'alt'], MOST = 5000, PATIENCE = 3000;
const SPARED = '.notranslate', UNREAD = `${SPARED}, [translate=no], textarea, code, pre, script, style`;
const SHORT = 4;  // letters of a sentence below which its values have to be numbers, so that prompts do not fit it
const root = document.documentElement;
let sentences = new Map(), patterns = [], found = new Map(), language = 'en', watcher = null;
const kept = new WeakMap();  // node -> {what: {said, shown}}: each text that was replaced

// -- sentences ------------------------------------------------------------------------------------------------------
const plain = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

function pattern(key, text) {
  const places = [...key.matchAll(/\{(\d)\}/g)].map((one) => one[1]), fixed = key.split(/\{\d\}/);
  const value = fixed.join('').replace(/[^\p{L}]/gu, '').length < SHORT ? '(\\d.*?)' : '(.*?)';
  return {weight: fixed.join('').length, places, text, fits: new RegExp(`^${fixed.map(plain).join(value)}$`, 's')};
}

function read({sentences: all, framework}) {
  const entries = Object.entries({...all, ...framework});
  sentences = new Map(entries.filter(([key]) => !/\{\d\}/.test(key)));
  Object.values(framework).forEach((text) => sentences.set(text, text));  // it speaks the browser's language by itself
  patterns = entries.filter(([key]) => /\{\d\}/.test(key)).map(([key, text]) => pattern(key, text)).sort((a, b) => b.weight - a.weight);
  found = new Map();
}

function filled({text, places, fits}, said) {
  const match = fits.exec(said);
  if (!match) return null;
  return text.replace(/\{(\d)(\+?)\}/g, (whole, place, ours) => { const value = match[1 + places.indexOf(place)]; return (ours && looked(value)) || value; });
}

const fitting = (said) => { for (const one of patterns) { const text = filled(one, said); if (text !== null) return text; } return null; };

// A text of several sentences: each as short as the catalogue knows it; null unless all are known.
function inSentences(said, mark, between) {
  const parts = said.split(mark);
  if (parts.length < 2) return null;
  const texts = [];
  for (let at = 0; at < parts.length;) {
    let text = null, end = at + 1;
    for (; end <= parts.length && text === null; end += 1) {
      const part = parts.slice(at, end).join(between);
      if (part.length < said.length) text = sentences.get(part) ?? fitting(part);
    }
    if (text === null) return null;
    texts.push(text);
    at = end - 1;
  }
  return texts.join(between);
}

// The name of something, and of what: "Help: Prompt", "Cancel: “a fox”".
function named(said) {
  const at = said.indexOf(': '), name = at > 0 && sentences.get(said.slice(0, at)), rest = said.slice(at + 2);
  return name ? `${name}: ${looked(rest) ?? rest}` : null;
}

// Returns the text in the chosen language; null if the catalogue lacks it.
function looked(said) {
  if (found.has(said)) return found.get(said);
  if (found.size > MOST) found = new Map();
  let text = sentences.get(said) ?? null;
  if (text === null && said.includes(' · ')) {  // of some the parts are values
    const parts = said.split(' · '), texts = parts.map(looked);
    if (texts.some((one) => one !== null)) text = texts.map((one, index) => one ?? parts[index]).join(' · ');
  }
  text ??= inSentences(said, /(?<=[.!?:])\s+/, ' ') ?? fitting(said) ?? named(said);
  found.set(said, text);
  return text;
}

// The same for a text with white space around it, and the end of a sentence before it.
function spoken(text) {
  const [, head, said, tail] = /^([\s.,;]*)(.*?)(\s*)$/s.exec(text);
  if (!said || !/\p{L}/u.test(said)) return null;
  const shown = looked(said.replace(/\s+/g, ' '));
  return shown === null ? null : head + shown + tail;
}
studio.translated = (text) => spoken(text) ?? text;
// Captions of pictures are ours, or what somebody wrote.
studio.ours = (caption) => /^(seed \d+|all)$/.test(caption || '');

// -- the page -------------------------------------------------------------------------------------------------------
const record = (node) => { if (!kept.has(node)) kept.set(node, {}); return kept.get(node); };

// `said` is what `what` of a node is now; it is shown in the chosen language by `show`.
function replace(node, what, said, show) {
  const own = record(node), before = own[what];
  if (before && before.shown === said) said = before.said;  // replaced by this script
  const shown = spoken(said);
  if (shown === null) {
    delete own[what];
    if (before && before.shown !== before.said && said === before.said) show(said);
    return;
  }
  own[what] = {said, shown};
  show(shown);
}

function ofText(node) {
  if (!node.parentElement || node.parentElement.closest(UNREAD)) return;
  replace(node, 'text', node.data, (text) => { if (node.data !== text) node.data = text; });
}

function ofAttribute(element, name) {
  if (element.hasAttribute(name) && !element.closest(SPARED))
    replace(element, name, element.getAttribute(name), (text) => { if (element.getAttribute(name) !== text) element.setAttribute(name, text); });
}

// A list shows its choice in a field: the framework goes on reading and writing the choice itself.
const {get, set} = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value');
function ofChoice(field) {
  if (field.closest(SPARED)) return;
  let chosen = get.call(field);
  const own = record(field);
  own.again = () => { if (document.activeElement !== field || field.readOnly) set.call(field, spoken(chosen) ?? chosen); };
  Object.defineProperty(field, 'value', {
    configurable: true,
    get() { const now = get.call(field); return now === (spoken(chosen) ?? chosen) ? chosen : now; },
    set(text) { chosen = text; set.call(field, spoken(String(text)) ?? text); },
  });
  own.again();
}

function ofElement(element) {
  for (const name of ATTRIBUTES) ofAttribute(element, name);
  if (element.matches('input[role=combobox]')) { if (kept.get(element)?.again) kept.get(element).again(); else ofChoice(element); }
}

function all(top) {
  if (top.nodeType === Node.TEXT_NODE) return ofText(top);
  if (top.nodeType !== Node.ELEMENT_NODE) return;
  ofElement(top);
  const walk = document.createTreeWalker(top, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  while (walk.nextNode()) (walk.currentNode.nodeType === Node.TEXT_NODE ? ofText : ofElement)(walk.currentNode);
}

// Returns the texts of a page that are to be translated and are not: each was looked up, and the catalogue lacks it.
studio.untranslated = (top) => {
  const left = [], walk = document.createTreeWalker(top, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  const lacks = (node, what, said) => /\p{L}{2}/u.test(said) && !kept.get(node)?.[what] && left.push(said.trim());
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (node.nodeType === Node.TEXT_NODE) node.parentElement.closest(UNREAD) || lacks(node, 'text', node.data);
    else if (!node.closest(SPARED)) ATTRIBUTES.forEach((name) => lacks(node, name, node.getAttribute(name) || ''));
  }
  return left;
};

function changed(changes) {
  for (const {type, target, attributeName, addedNodes} of changes) {
    if (type === 'characterData') ofText(target);
    else if (type === 'attributes') ofAttribute(target, attributeName);
    else addedNodes.forEach(all);
  }
}

// -- the choice -----------------------------------------------------------------------------------------------------
const known = (name) => name in told.names;
const ofBrowser = () => (navigator.languages || [navigator.language]).map((one) => one.split('-')[0]).find(known) || 'en';
const wanted = () => [localStorage.getItem(KEY), told.chosen].find((one) => one && known(one)) || ofBrowser();

async function catalogue(name) {
  const answer = await fetch(`/languages/${name}.json?${told.digests[name]}`);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

// The framework speaks the browser's language by itself; what it says of its own is turned back into English.
async function inEnglish() {
  const own = (navigator.language || '').split('-')[0];
  const {framework} = own !== 'en' && known(own) ? await catalogue(own) : {framework: {}};
  return {sentences: {}, framework: Object.fromEntries(Object.entries(framework).map(([key, text]) => [text, key]))};
}

async function speak(name) {
  try {
    read(name === 'en' ? await inEnglish() : await catalogue(name));
    language = name;
  } catch { /* the server is away; the page stays as it is */ }
  root.lang = language;
  all(root);
  if (!watcher && (sentences.size || patterns.length)) {
    watcher = new MutationObserver(changed);
    watcher.observe(root, {childList: true, characterData: true, subtree: true, attributeFilter: ATTRIBUTES});
  }
  for (const one of document.querySelectorAll('[data-do=language]')) one.value = language;
}

document.addEventListener('change', (event) => {
  if (!event.target.matches?.('[data-do=language]')) return;
  localStorage.setItem(KEY, event.target.value);
  speak(event.target.value);
});

// The framework names the language of the browser, which need not be that of the page.
new MutationObserver(() => { if (root.lang !== language) root.lang = language; }).observe(root, {attributeFilter: ['lang']});
new MutationObserver(() => {
  for (const one of document.querySelectorAll('[data-do=language]:not([data-ready])')) { one.dataset.ready = '1'; one.value = language; }
}).observe(root, {childList: true, subtree: true});

// Nothing is seen before it is in its language, unless that takes long.
root.classList.add('wording');
const seen = () => root.classList.remove('wording');
setTimeout(seen, PATIENCE);
speak(wanted()).then(seen);
