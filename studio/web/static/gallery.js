// Pictures. props.value is a list of {src, caption, width, height, seed, sheet, before, name, liked}; a click chooses one and
// opens it large (light.js). With props.ticks each can be ticked, which is `picked` of its record. props.acts is a list
// of [event, label] offered for the large one, props.chosen its number. The framework finds the events of the page by
// their names here: 'use0', 'use1', 'use2', 'use3' and 'use4'.
const frame = element.querySelector('.gallery'), about = element.querySelector('.about');
const SMALL = 160;  // pixels of a side up to which a picture is shown enlarged

function choose(index) {
  props.chosen = index;
  mark();
  trigger('choose', {index});
}

function mark() {
  [...frame.querySelectorAll('figure')].forEach((one, index) =>
    one.querySelector('button').setAttribute('aria-pressed', String(index === props.chosen)));
}

function open(index) {
  const acts = (props.acts || []).map(([event, label]) => ({
    label, act: (at) => { props.chosen = at; mark(); trigger(event, {index: at}); },
  }));
  window.studio.light.open(props.value, index, {acts, moved: choose, back: () => frame.children[props.chosen]?.querySelector('button')});
}

function picture(one, index) {
  const node = document.createElement('figure'), button = document.createElement('button');
  const shown = Object.assign(document.createElement('img'), {src: one.src, alt: image(one, index), loading: 'lazy'});
  if (one.width) { shown.width = one.width; shown.height = one.height; }
  button.type = 'button';
  button.title = 'Show it large';
  button.append(shown);
  button.addEventListener('click', () => { choose(index); open(index); });
  shown.addEventListener('dragstart', (event) => event.dataTransfer.setData('text/studio-picture', one.src));
  node.className = one.sheet ? 'thumbnail-item sheet' : 'thumbnail-item';
  node.append(button);
  if (props.ticks) node.append(tick(one, index));
  if (one.liked) node.append(Object.assign(document.createElement('span'), {className: 'liked', textContent: '♥', title: 'A favourite'}));
  if (one.caption) node.append(Object.assign(document.createElement('figcaption'), {textContent: one.caption, translate: window.studio.ours(one.caption)}));
  return node;
}

function tick(one, index) {
  const label = document.createElement('label'), box = Object.assign(document.createElement('input'), {type: 'checkbox', checked: !!one.picked});
  label.className = 'tick';
  box.setAttribute('aria-label', `Tick ${image(one, index)}`);
  box.addEventListener('change', () => {
    props.value = props.value.map((other, at) => (at === index ? {...other, picked: box.checked} : {...other}));
    trigger('input', {index});
  });
  label.append(box);
  return label;
}

const image = (one, index) => one.alt || one.caption || `picture ${index + 1}`;

function draw() {
  const value = props.value || [];
  const small = value.length && value.every((one) => one.sheet || Math.max(one.width, one.height) <= SMALL);
  frame.className = 'gallery' + (small ? ' small' : '') + (value.length === 1 ? ' single' : value.length <= 4 ? ' few' : '');
  frame.replaceChildren(...value.map(picture));
  if (!value.length && props.empty)
    frame.append(Object.assign(document.createElement('p'), {className: 'hint', textContent: props.empty}));
  about.textContent = value.length ? props.hint || '' : '';
  mark();
}
watch(['value', 'acts', 'hint', 'empty'], draw);
watch('chosen', mark);
draw();
