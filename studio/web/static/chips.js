// Chips of learned concepts. props.value is a list of {id, token, kind, picture, on, strength, least, problem}: those
// that are on, and the first of the library; the event find has a text for which others are looked up.
const frame = element.querySelector('.chips'), seek = element.querySelector('.seek');
const MANY = 24, PAUSE = 250;
let pause = 0;
const copy = () => (props.value || []).map((one) => ({...one}));

function change(index, fields) {
  const value = copy();
  Object.assign(value[index], fields);
  props.value = value;
  trigger('input', {index, ...fields});
}

function chip(one, index) {
  const node = document.createElement('div'), button = document.createElement('button');
  node.className = 'chip' + (one.on ? ' on' : '') + (one.problem ? ' misfit' : '');
  button.type = 'button';
  button.setAttribute('aria-pressed', String(!!one.on));
  button.disabled = !!one.problem;
  button.title = one.problem ? `${one.token} does not go with this base: ${one.problem}` : one.kind === 'slider' ? (one.on ? 'Leave it out' : 'Use it') : one.on ? 'Take it out of the prompt' : 'Put it into the prompt';
  if (one.picture) button.append(Object.assign(document.createElement('img'), {src: one.picture, alt: ''}));
  button.append(Object.assign(document.createElement('span'), {textContent: one.token, translate: false}));
  button.append(Object.assign(document.createElement('small'), {textContent: one.problem || one.kind}));
  button.addEventListener('click', () => { change(index, {on: !one.on}); draw(); frame.children[index].querySelector('button').focus(); });
  node.append(button);
  if (one.on) {
    const range = Object.assign(document.createElement('input'), {type: 'range', min: one.least || 0, max: 2, step: 0.05, value: one.strength});
    const figure = Object.assign(document.createElement('output'), {textContent: Number(one.strength).toFixed(2)});
    range.setAttribute('aria-label', `Strength of ${one.token}`);
    range.addEventListener('input', () => { figure.textContent = Number(range.value).toFixed(2); });
    range.addEventListener('change', () => change(index, {strength: Number(range.value)}));
    node.append(range, figure);
  }
  return node;
}

seek.addEventListener('input', () => {
  clearTimeout(pause);
  pause = setTimeout(() => { trigger('find', {text: seek.value}); }, PAUSE);
});

function draw() {
  const value = props.value || [];
  seek.hidden = value.length < MANY && !seek.value;
  frame.replaceChildren(...value.map(chip));
  if (!value.length) frame.append(Object.assign(document.createElement('p'), {className: 'hint', textContent: seek.value ? 'No concept holds these words.' : 'Nothing learned yet. Concepts that you teach appear here.'}));
}
watch('value', draw);
draw();
