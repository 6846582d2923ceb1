// Where words look. props.value is {picture, words: [{word, src, most}]} or null; a word pointed at, reached by keys or
// clicked shows its map over the picture, and a clicked one stays.
const frame = element.querySelector('.looked'), words = element.querySelector('.words');
const image = element.querySelector('img'), said = element.querySelector('figcaption');
let kept = -1;

function show(index) {
  const one = props.value?.words?.[index];
  image.src = one ? one.src : props.value.picture;
  image.alt = one ? `The picture, light where “${one.word}” was looked up` : 'The picture';
  const share = one ? Math.round(100 * one.most) : 0;
  said.textContent = one
    ? `“${one.word}”: light where it was looked up most, ${share || 'below 1'} % of the attention there.`
    : 'Point at a word, or click it, to see where in the picture it was looked up.';
}

function keep(index) {
  kept = kept === index ? -1 : index;
  [...words.children].forEach((one, at) => one.setAttribute('aria-pressed', String(at === kept)));
  show(kept);
}

function word(one, index) {
  const node = Object.assign(document.createElement('button'), {type: 'button', className: 'looked-word', textContent: one.word});
  node.setAttribute('aria-pressed', 'false');
  for (const event of ['mouseenter', 'focus']) node.addEventListener(event, () => show(index));
  for (const event of ['mouseleave', 'blur']) node.addEventListener(event, () => show(kept));
  node.addEventListener('click', () => keep(index));
  return node;
}

function draw() {
  frame.hidden = !props.value;
  if (!props.value) return;
  kept = -1;
  words.replaceChildren(...props.value.words.map(word));
  show(kept);
}
watch('value', draw);
draw();
