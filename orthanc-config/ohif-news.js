/** What is said when results come or go while a study is open, and how new ones get into OHIF. */

const SHOWN_MS = 8000;
const UNTIL_CLICKED = Infinity;
const OURS = ['SEG', 'SR'];

/** Put the stacks of one result together: [{name, model, series, segs}]. */
function resultsOf(overlays) {
  const results = new Map();
  overlays.forEach(overlay => {
    const key = `${overlay.series_uid} ${nameOf(overlay)}`;
    const { model, series_uid: series } = overlay;
    if (!results.has(key)) results.set(key, { name: nameOf(overlay), model, series, segs: [] });
    results.get(key).segs.push(overlay.seg_series_uid);
  });
  return [...results.values()];
}

class News {
  constructor({ services, extensionManager }) {
    this.services = services;
    this.extensionManager = extensionManager;
    this.said = new Set();
  }

  stop() {
    this.said.forEach(id => this.services.uiNotificationService.hide(id));
    this.said.clear();
  }

  say(id, title, message, { type = 'info', duration = SHOWN_MS, action } = {}) {
    this.said.add(id);
    this.services.uiNotificationService.show({ id, title, message, type, duration, action });
  }

  /** Offer a result that came; `replaces` says whether one of its model was shown before. */
  offer(result, replaces, show) {
    const message = replaces ? 'It replaces the one that was on the screen.' : 'AI, unverified.';
    this.say(`segnode-${result.segs[0]}`, `New AI result: ${result.name}`, message, {
      duration: UNTIL_CLICKED,
      action: { label: 'Show it', onClick: show },
    });
  }

  /** Take an offer back. */
  forget(result) {
    this.services.uiNotificationService.hide(`segnode-${result.segs[0]}`);
  }

  takenOff({ name, segs: [seg] }) {
    this.warn(`segnode-off-${seg}`, `AI result ${name} was taken off the screen`);
  }

  closed({ SeriesInstanceUID: uid, SeriesDescription: name }) {
    this.warn(`segnode-off-${uid}`, `AI result ${name} was closed`);
  }

  warn(id, title) {
    this.say(id, title, 'It was withdrawn or replaced, or is being made again.', {
      type: 'warning',
      duration: UNTIL_CLICKED,
      action: { label: 'Understood', onClick() {} },
    });
  }

  /** Say that nobody knows which results are valid, or take that back. */
  away(isAway) {
    if (!isAway) {
      this.services.uiNotificationService.hide('segnode-away');
      return;
    }
    const warning = { type: 'warning', duration: UNTIL_CLICKED };
    const said = 'One that is shown or listed may have been withdrawn.';
    this.say('segnode-away', 'AI results cannot be checked just now', said, warning);
  }

  hidden(count) {
    const results = count === 1 ? '1 AI result is' : `${count} AI results are`;
    this.say('segnode-hidden', `${results} hidden`, 'Withdrawn, replaced by newer ones, or uncertain.');
  }

  failed(result) {
    this.say(
      `segnode-failed-${result.segs[0]}`,
      `AI result ${result.name} could not be loaded`,
      'Reload the page to see it.',
      { type: 'error' }
    );
  }

  /**
   * Tell OHIF of results, and of their reports, that came after it opened the study.
   *
   * @param unwanted series that stay out
   */
  async fetch(study, unwanted) {
    const { displaySetService } = this.services;
    const [dataSource] = this.extensionManager.getActiveDataSource();
    const known = new Set(displaySetService.getActiveDisplaySets().map(s => s.SeriesInstanceUID));
    const inArchive = await dataSource.query.series.search(study);
    const missing = inArchive
      .filter(({ modality }) => OURS.includes(modality))
      .map(({ seriesInstanceUid }) => seriesInstanceUid)
      .filter(uid => !known.has(uid) && !unwanted.has(uid));
    if (!missing.length) return;
    this.forgetSeriesList(study);
    try {
      await dataSource.retrieve.series.metadata({
        StudyInstanceUID: study,
        filters: { seriesInstanceUID: missing },
      });
    } finally {
      this.forgetSeriesList(study);
    }
  }

  /** OHIF keeps the list of a study's series for good, and that of a part of them too. */
  forgetSeriesList(study) {
    const [dataSource] = this.extensionManager.getActiveDataSource();
    dataSource.deleteStudyMetadataPromise(study);
    // 3.13.2 keeps it by another name than the one by which it deletes
    dataSource.deleteStudyMetadataPromise(`${dataSource.getConfig().name}:${study}`);
  }
}
