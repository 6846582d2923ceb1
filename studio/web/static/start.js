// A picture to start from. props.value is {image, strength}: the id of a stored picture and how much is changed; or null.
const find = (selector) => element.querySelector(selector);
const zone = find('.zone'), file = find('[type=file]'), image = find('img'), line = find('.line'), range = find('[type=range]'), figure = find('output'), said = find('[role=status]');
const USUAL = 0.6;
range.setAttribute('aria-label', 'Strength of the change');

function change(value) {
  props.value = value;
  draw();
  trigger('input');
}

async function take(given) {
  if (!given) return;
  const form = new FormData();
  form.append('file', given);
  zone.setAttribute('aria-busy', 'true');
  said.textContent = 'Sending…';
  try {
    const answer = await fetch('/api/v1/pictures', {method: 'POST', body: form}), told = await answer.json();
    said.textContent = answer.ok ? '' : [told.detail, told.hint].filter(Boolean).join(' ') || 'That picture cannot be taken.';
    if (answer.ok) change({image: told.id, strength: props.value?.strength ?? USUAL});
  } catch {
    said.textContent = 'The picture could not be sent. Try it again.';
  } finally {
    zone.setAttribute('aria-busy', 'false');
    file.value = '';
  }
}

function draw() {
  const there = props.value?.image;
  image.hidden = !there;
  line.hidden = !there;
  zone.querySelector('span').hidden = !!there;
  if (!there) return image.removeAttribute('src');
  const address = `/api/v1/pictures/${encodeURIComponent(there)}`;
  if (image.getAttribute('src') !== address) image.src = address;
  range.value = props.value.strength ?? USUAL;
  figure.textContent = Number(range.value).toFixed(2);
}

image.addEventListener('error', () => {
  if (!props.value) return;
  change(null);
  said.textContent = 'The picture it started from is no longer here.';
});
file.addEventListener('change', () => take(file.files[0]));
zone.addEventListener('keydown', (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); file.click(); } });
zone.addEventListener('dragover', (event) => event.preventDefault());
zone.addEventListener('drop', (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
range.addEventListener('input', () => { figure.textContent = Number(range.value).toFixed(2); });
range.addEventListener('change', () => change({...props.value, strength: Number(range.value)}));
line.querySelector('button').addEventListener('click', () => { change(null); zone.focus(); });
watch('value', draw);
draw();
