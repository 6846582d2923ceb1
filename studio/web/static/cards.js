// Cards of concepts. props.value is a list of {id, token, kind, base, picture, words, problem}; a click chooses one.
const frame = element.querySelector('.cards');
frame.setAttribute('aria-label', props.title);

function card(one) {
  const node = document.createElement('button');
  node.type = 'button';
  node.className = 'card';
  node.setAttribute('aria-pressed', String(one.id === props.chosen));
  const picture = one.picture ? Object.assign(document.createElement('img'), {src: one.picture, alt: '', loading: 'lazy'}) : document.createElement('i');
  const text = document.createElement('span');
  for (const [tag, words] of [['b', one.token], ['small', one.kind], ['small', one.base], ['small', one.words]])
    if (words) text.append(Object.assign(document.createElement(tag), {textContent: words, translate: tag !== 'b'}));
  node.append(picture, text);
  node.addEventListener('click', () => { props.chosen = one.id; draw(); trigger('pick', {id: one.id}); });
  return node;
}

function draw() {
  const value = props.value || [];
  frame.replaceChildren(...value.map(card));
  if (!value.length) frame.append(Object.assign(document.createElement('p'), {className: 'hint', textContent: props.empty}));
}
watch(['value', 'chosen', 'empty'], draw);
draw();
