/** What segnode's ledger says of the studies that are open. OHIF does not ask again; we do. */

const ASK_EVERY_MS = 5000;

const log = (text, detail) => console.warn(`[segnode] ${text}`, detail ?? '');

function studiesInAddress() {
  const query = new URLSearchParams(window.location.search);
  return query.getAll('StudyInstanceUIDs').flatMap(value => value.split(',')).filter(Boolean);
}

class Ledger {
  /**
   * @param studies gives the Study Instance UIDs that are open
   * @param told is called with {study, before, after} where an answer is another one; `before` is
   *   undefined at a study's first
   */
  constructor(studies, told) {
    this.studies = studies;
    this.told = told;
    this.answers = new Map();
    this.asking = false;
    this.failed = false;
    // whether an answer may have come long after the study was opened
    this.late = false;
    this.askAgain = () => document.visibilityState === 'visible' && this.ask();
  }

  start() {
    this.timer = setInterval(this.askAgain, ASK_EVERY_MS);
    document.addEventListener('visibilitychange', this.askAgain);
    this.ask();
  }

  stop() {
    clearInterval(this.timer);
    document.removeEventListener('visibilitychange', this.askAgain);
    this.answers.clear();
    this.told = () => {};
  }

  /** Valid results: [{series_uid, seg_series_uid, model, version, route}], first to show first. */
  get overlays() {
    return this.overlaysOf([...this.answers.keys()]);
  }

  overlaysOf(studies) {
    return studies.flatMap(study => this.answers.get(study)?.overlays ?? []);
  }

  /** Series of results that do not count: superseded, withdrawn, or uncertain. */
  get hidden() {
    return new Set([...this.answers.values()].flatMap(({ hidden }) => hidden));
  }

  async ask() {
    if (this.asking) return;
    this.asking = true;
    try {
      await Promise.all([...new Set(this.studies())].map(study => this.askOf(study)));
      this.failed = false;
    } catch (error) {
      if (!this.failed) log('The ledger did not say which overlays are valid.', error);
      this.failed = true;
      this.late = true;
    } finally {
      this.asking = false;
    }
  }

  async askOf(study) {
    const before = this.answers.get(study);
    const answer = await fetch(
      `/segnode/api/overlays?StudyInstanceUIDs=${encodeURIComponent(study)}`,
      {
        credentials: 'same-origin',
        cache: 'no-store',
        headers: before?.etag ? { 'If-None-Match': before.etag } : {},
      }
    );
    if (answer.status === 304) return;
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const { overlays, hidden = [] } = await answer.json();
    const after = { overlays, hidden, etag: answer.headers.get('ETag') };
    this.answers.set(study, after);
    this.told({ study, before, after });
  }
}
