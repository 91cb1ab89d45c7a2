/** What segnode's ledger says of the studies that are open. OHIF does not ask again; we do. */

const ASK_EVERY_MS = 5000;
const ASK_WITHIN_MS = 15000;

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
   * @param away is called with whether it is away, when that changes
   */
  constructor(studies, told, away) {
    this.studies = studies;
    this.told = told;
    this.away = away;
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
    this.away = () => {};
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
    // all of them end before any is asked again, so that no answer overtakes a newer one
    const asked = [...new Set(this.studies())].map(study => this.askOf(study));
    const error = (await Promise.allSettled(asked)).find(({ reason }) => reason)?.reason;
    if (error && !this.failed) log('The ledger did not say which overlays are valid.', error);
    if (Boolean(error) !== this.failed) this.away(Boolean(error));
    this.failed = Boolean(error);
    this.late ||= this.failed;
    this.asking = false;
  }

  async askOf(study) {
    const before = this.answers.get(study);
    const answer = await fetch(
      `/segnode/api/overlays?StudyInstanceUIDs=${encodeURIComponent(study)}`,
      {
        credentials: 'same-origin',
        cache: 'no-store',
        signal: AbortSignal.timeout(ASK_WITHIN_MS),
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
