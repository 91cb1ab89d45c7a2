/** "AI, unverified, research use" on every image over which a result of ours is drawn. */

const MARK = 'AI, unverified, research use';
const MARK_CLASS = 'segnode-mark';
const IMAGE_RENDERED = 'CORNERSTONE_IMAGE_RENDERED';
const MARK_STYLE = {
  position: 'absolute',
  // above OHIF's own text at the lower edge; at the upper one stands the letter of orientation
  bottom: '58px',
  left: '0',
  right: '0',
  width: 'fit-content',
  margin: '0 auto',
  maxWidth: '95%',
  padding: '0 6px',
  borderRadius: '3px',
  background: 'rgba(0, 0, 0, 0.7)',
  color: '#ffb74d',
  font: '12px/15px sans-serif',
  textAlign: 'center',
  whiteSpace: 'pre-line',
  pointerEvents: 'none',
  zIndex: '5',
};

class Marks {
  /** @param named gives the names of our results that are visible in a viewport, by its id */
  constructor(named) {
    this.named = named;
    // cornerstone's events do not bubble, but they pass here first
    this.rendered = ({ target, detail }) => this.mark(target, detail?.viewportId);
  }

  start() {
    document.addEventListener(IMAGE_RENDERED, this.rendered, true);
  }

  stop() {
    document.removeEventListener(IMAGE_RENDERED, this.rendered, true);
    document.querySelectorAll(`.${MARK_CLASS}`).forEach(mark => mark.remove());
  }

  /** Let the marks of all viewports agree with what is visible now. */
  update() {
    document
      .querySelectorAll('[data-viewport-uid]')
      .forEach(element => this.mark(element, element.dataset.viewportUid));
  }

  mark(element, viewportId) {
    if (!viewportId || !(element instanceof HTMLElement)) return;
    const names = this.named(viewportId);
    const mark = element.querySelector(`:scope > .${MARK_CLASS}`);
    if (!names.length) {
      mark?.remove();
      return;
    }
    const text = [MARK, ...names].join('\n');
    if (mark?.textContent !== text) (mark ?? this.add(element)).textContent = text;
  }

  add(element) {
    const mark = document.createElement('div');
    mark.className = MARK_CLASS;
    mark.dataset.cy = MARK_CLASS;
    Object.assign(mark.style, MARK_STYLE);
    return element.appendChild(mark);
  }
}
