/** What happens to the screen and to the list of the study when results come, or hold no more. */

class Changes {
  /**
   * @param screen what shows results: an `Overlays`
   */
  constructor({ services, ledger, results, news, screen }) {
    this.services = services;
    this.ledger = ledger;
    this.results = results;
    this.news = news;
    this.screen = screen;
    this.removed = new Set();
  }

  /** The ledger's answer on a study is another one. */
  told({ study, before, after }) {
    this.results.note(after.overlays);
    if (before) this.tellChange(study, resultsOf(before.overlays), resultsOf(after.overlays));
    this.screen.settle();
  }

  tellChange(study, before, after) {
    // what comes later moves nobody to another series
    this.screen.opened = true;
    const lacks = (results, { segs: [seg] }) => !results.some(({ segs }) => segs.includes(seg));
    const follows = one => other => one.model === other.model && one.series === other.series;
    const came = after.filter(result => lacks(before, result));
    const off = before
      .filter(result => lacks(after, result))
      .filter(result => this.withdraw(result));
    this.removeHidden({ note: !came.length && !off.length });
    off
      .filter(result => !came.some(follows(result)))
      .forEach(result => this.news.takenOff(result));
    came.forEach(result => this.offer(study, result, off.some(follows(result))));
  }

  /** Take a result that holds no more off the screen; return whether it was seen there. */
  withdraw({ series, segs, ...result }) {
    this.news.forget({ segs, ...result });
    segs.forEach(seg => this.results.offered.delete(seg));
    if (segs.includes(this.results.chosen.get(series))) this.results.chosen.delete(series);
    const wasSeen = this.screen.grid().map(({ id }) => this.screen.takeOff(id, segs));
    return wasSeen.includes(true);
  }

  offer(study, result, replaces) {
    result.segs.forEach(seg => this.results.offered.add(seg));
    this.news.offer(result, replaces, () => this.bring(study, result));
  }

  /** Somebody wants to see a result that came while the study was open. */
  async bring(study, result) {
    try {
      await this.news.fetch(study, this.ledger.hidden);
    } catch (error) {
      log('A new result could not be fetched.', error);
      this.news.failed(result);
      return;
    }
    if (!this.results.displaySets(result.segs[0]).length) {
      log('A new result is not in the archive.', result);
      this.news.failed(result);
      return;
    }
    result.segs.forEach(seg => this.results.offered.delete(seg));
    this.screen.choose(result.series, result.segs[0]);
    const shown = this.screen.viewports().some(v => v.images.SeriesInstanceUID === result.series);
    const { viewportGridService } = this.services;
    if (!shown) this.screen.open(result.series, viewportGridService.getActiveViewportId());
    this.screen.settle();
  }

  /** Results that do not count leave the screen, and the list of the study. */
  removeHidden({ note = true } = {}) {
    const { hidden } = this.ledger;
    const theirs = this.services.displaySetService
      .getActiveDisplaySets()
      .filter(set => hidden.has(set.SeriesInstanceUID) && !this.isLeft(set));
    if (!theirs.length) return;
    theirs.forEach(set => this.remove(set));
    if (!note) return;
    theirs.filter(isSegmentation).forEach(set => this.removed.add(set.SeriesInstanceUID));
    if (this.removed.size) this.news.hidden(this.removed.size);
  }

  /**
   * Whether a viewport shows the set itself, a report say, and is made to show images now: OHIF
   * fails at a set that is gone while it is drawn. Once it is drawn no more, we are called again.
   */
  isLeft(set) {
    const showing = this.screen.grid().filter(({ sets }) => sets.includes(set));
    showing.forEach(({ id }) => this.leave(id, set));
    if (showing.length) this.news.closed(set);
    return showing.length > 0;
  }

  leave(viewportId, set) {
    const others = this.services.displaySetService.getActiveDisplaySets();
    const images =
      this.results.displaySets(set.referencedSeriesInstanceUID)[0] ??
      others.find(({ Modality }) => !OURS.includes(Modality));
    if (images) this.screen.open(images.SeriesInstanceUID, viewportId);
  }

  remove(set) {
    const { displaySetService, segmentationService } = this.services;
    const uid = set.displaySetInstanceUID;
    this.screen.grid().forEach(({ id }) => this.screen.takeOff(id, [set.SeriesInstanceUID]));
    const forget = () =>
      segmentationService.getSegmentation(uid) && segmentationService.remove(uid);
    forget();
    // one that OHIF loads just now it would draw all the same
    set.loadingPromise?.then(() => setTimeout(forget), () => {});
    displaySetService.deleteDisplaySet(uid);
  }
}
