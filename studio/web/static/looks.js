// Light or dark, as the system says or as chosen; and pictures that are dragged onto inputs.
const KEY = 'studio.looks';
const dark = () => document.body.classList.contains('dark');
const button = () => document.querySelector('[data-do=looks]');

function set(want) {
  document.body.classList.toggle('dark', want);
  const node = button();
  if (node) { node.textContent = want ? 'Light' : 'Dark'; node.setAttribute('aria-label', want ? 'Use light colours' : 'Use dark colours'); }
}

document.addEventListener('click', (event) => {
  if (!event.target.closest?.('[data-do=looks]')) return;
  set(!dark());
  localStorage.setItem(KEY, dark() ? 'dark' : 'light');
});

const opened = setInterval(() => {
  if (!button() || !document.querySelector('#prompt textarea')) return;
  clearInterval(opened);
  const kept = localStorage.getItem(KEY);
  set(kept ? kept === 'dark' : dark());
}, 100);

// A picture of the studio becomes a file of whatever input it is dropped on; a tab opens when it is dragged over it.
const drags = (event) => event.dataTransfer?.types.includes('text/studio-picture');
const input = (event) => event.target.closest?.('.drop, .pair, .paint-drop')?.querySelector('input[type=file]');

document.addEventListener('dragover', (event) => {
  if (!drags(event)) return;
  const tab = event.target.closest?.('[role=tab]');
  if (tab && tab.getAttribute('aria-selected') !== 'true') tab.click();
  if (input(event)) event.preventDefault();
}, true);

document.addEventListener('drop', async (event) => {
  const place = drags(event) && input(event);
  if (!place) return;
  event.preventDefault();
  event.stopPropagation();
  const address = event.dataTransfer.getData('text/studio-picture');
  if (new URL(address, location).origin !== location.origin) return;
  const files = new DataTransfer();
  files.items.add(new File([await (await fetch(address)).blob()], 'picture.png', {type: 'image/png'}));
  place.files = files.files;
  place.dispatchEvent(new Event('change', {bubbles: true}));
}, true);

// The base that each page was last used with.
const BASES = 'studio.bases';
const studio = window.studio = window.studio || {};
studio.keep_bases = (kept) => { localStorage.setItem(BASES, kept); return kept; };
studio.kept_bases = () => localStorage.getItem(BASES) || '';
