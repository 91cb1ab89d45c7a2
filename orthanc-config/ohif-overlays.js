/**
 * An extension that shows, without a click, the result which segnode's ledger names first for the
 * series on screen, lists those of other models, and keeps away those that hold no more.
 *
 * A viewport never gets the segmentation of another series: no overlay is better than a wrong one.
 */

const LABELMAP = 'Labelmap';
const SEGMENTATION_PANEL = '@ohif/extension-cornerstone.panelModule.panelSegmentation';

const itemsOf = ({ ContentSequence }) => [ContentSequence ?? []].flat();

/** Whether an item of a report, or one below it, lies somewhere in an image. */
const hasCoordinates = item =>
  String(item.ValueType).startsWith('SCOORD') || itemsOf(item).some(hasCoordinates);

/** Whether the address itself says which series to open. */
function seriesInAddress() {
  const names = [...new URLSearchParams(window.location.search).keys()];
  return names.some(name => /^(initial)?SeriesInstanceUIDs?$/i.test(name));
}

class Overlays {
  constructor({ servicesManager, commandsManager, extensionManager }) {
    const { services } = servicesManager;
    this.services = services;
    this.commands = commandsManager;
    this.ledger = new Ledger(
      () => this.studies(),
      answer => this.changes.told(answer),
      isAway => this.news.away(isAway)
    );
    this.results = new Results(services, this.ledger);
    this.news = new News({ services, extensionManager });
    this.changes = new Changes({ ...this, screen: this });
    this.marks = new Marks(viewportId => this.namesIn(viewportId));
    this.rendered = () => setTimeout(() => this.openSeriesWithOverlay());
    this.opened = seriesInAddress();
    this.panelShown = false;
    this.stopped = false;
    this.busy = new Set();
    this.loading = new Map();
    // by viewport: the segmentations over it, as last seen
    this.seen = new Map();
  }

  start() {
    const {
      cornerstoneViewportService,
      displaySetService,
      segmentationService,
      viewportGridService,
    } = this.services;
    const on = (service, event, act) => service.subscribe(service.EVENTS[event], act);
    const settle = () => this.settle();
    const check = () => this.check();
    this.subscriptions = [
      on(displaySetService, 'DISPLAY_SETS_ADDED', settle),
      on(cornerstoneViewportService, 'VIEWPORT_DATA_CHANGED', settle),
      on(viewportGridService, 'GRID_STATE_CHANGED', () => this.heed()),
      on(segmentationService, 'SEGMENTATION_REPRESENTATION_MODIFIED', check),
      on(segmentationService, 'SEGMENTATION_REPRESENTATION_REMOVED', check),
    ];
    document.addEventListener(IMAGE_RENDERED, this.rendered, true);
    this.marks.start();
    this.ledger.start();
  }

  stop() {
    this.stopped = true;
    this.subscriptions.forEach(subscription => subscription.unsubscribe());
    this.studies().forEach(study => this.news.forgetSeriesList(study));
    document.removeEventListener(IMAGE_RENDERED, this.rendered, true);
    this.ledger.stop();
    this.news.stop();
    this.marks.stop();
  }

  /** Those of the address, and what else was opened beside them. */
  studies() {
    const shown = this.services.displaySetService.getActiveDisplaySets();
    return [...studiesInAddress(), ...shown.map(set => set.StudyInstanceUID)].filter(Boolean);
  }

  settle() {
    // OHIF restores a viewport's own segmentations after it announces the viewport
    setTimeout(() => {
      if (this.stopped) return;
      this.readReportsAsText();
      this.changes.removeHidden();
      this.openSeriesWithOverlay();
      this.viewports().forEach(viewport => this.show(viewport));
      this.check();
    }, 50);
  }

  /** Viewports that show images: [{id, images}], `images` being OHIF's display set. */
  viewports() {
    const { cornerstoneViewportService } = this.services;
    return this.grid()
      .filter(({ sets }) => sets.length === 1 && sets[0] && !sets[0].isOverlayDisplaySet)
      .filter(({ id }) => cornerstoneViewportService.getCornerstoneViewport(id))
      .map(({ id, sets: [images] }) => ({ id, images }));
  }

  /** All viewports, with the display sets in them; a fusion of two series has two. */
  grid() {
    const { displaySetService, viewportGridService } = this.services;
    const { viewports } = viewportGridService.getState();
    return [...viewports].map(([id, { displaySetInstanceUIDs }]) => ({
      id,
      sets: (displaySetInstanceUIDs ?? []).map(displaySetService.getDisplaySetByUID),
    }));
  }

  /** OHIF draws measurements into images, and fails at those that have no coordinates there. */
  readReportsAsText() {
    this.services.displaySetService
      .getActiveDisplaySets()
      .filter(({ isImagingMeasurementReport }) => isImagingMeasurementReport)
      .filter(({ instance }) => !hasCoordinates(instance))
      .forEach(report => {
        report.isImagingMeasurementReport = false;
      });
  }

  /** Once, where the study opened on series without an overlay: open the first that has one. */
  openSeriesWithOverlay() {
    const viewports = this.viewports();
    const overlays = this.ledger.overlaysOf(studiesInAddress());
    if (this.opened || this.stopped || this.ledger.late || !overlays.length) return;
    if (!viewports.some(({ id }) => this.hasImage(id))) return;
    const withOverlay = new Set(overlays.map(overlay => overlay.series_uid));
    this.opened = viewports.some(({ images }) => withOverlay.has(images.SeriesInstanceUID));
    if (!this.opened) this.opened = this.open(overlays[0].series_uid, viewports[0].id);
  }

  /** Left before its first image, a viewport keeps a zoom that fits nothing. */
  hasImage(viewportId) {
    const { cornerstoneViewportService } = this.services;
    return Boolean(cornerstoneViewportService.getCornerstoneViewport(viewportId)?.getImageData());
  }

  /** Show a series in a viewport. */
  open(seriesUid, viewportId) {
    const images = this.results.displaySets(seriesUid).find(set => !set.isOverlayDisplaySet);
    if (!images) return false;
    const viewportsToUpdate = this.services.hangingProtocolService.getViewportsRequireUpdate(
      viewportId,
      images.displaySetInstanceUID
    );
    this.commands.runCommand('setDisplaySetsForViewports', { viewportsToUpdate });
    return true;
  }

  /** Lay the ledger's segmentations over a viewport: the first is seen, the others are listed. */
  async show({ id, images }) {
    const busy = `${id} ${images.displaySetInstanceUID}`;
    if (this.busy.has(busy)) return;
    this.busy.add(busy);
    const tried = new Set();
    // asked anew each time: while one loads another may come
    const next = () =>
      this.results
        .segmentationsOf(images)
        .find(seg => !tried.has(seg) && !this.drawn(id).includes(seg));
    try {
      for (let seg = next(); seg; seg = next()) {
        tried.add(seg);
        await this.add(id, images, seg);
      }
    } finally {
      this.busy.delete(busy);
    }
  }

  async add(id, images, seg) {
    const { segmentationService } = this.services;
    try {
      await this.load(seg);
      const holds = this.results.segmentationsOf(images).includes(seg);
      if (!holds || !this.isShown(id, images) || this.drawn(id).includes(seg)) return;
      await segmentationService.addSegmentationRepresentation(id, {
        segmentationId: seg.displaySetInstanceUID,
        type: LABELMAP,
      });
      this.check();
      this.showPanel();
    } catch (error) {
      log('A segmentation could not be loaded; it is not shown.', error);
      this.news.failed({ name: this.results.nameOf(seg), segs: [seg.SeriesInstanceUID] });
    }
  }

  /** Viewports that ask for the same SEG at once get it from one request. */
  load(seg) {
    const id = seg.displaySetInstanceUID;
    if (!this.loading.has(id)) {
      const headers = this.services.userAuthenticationService.getAuthorizationHeader();
      const loaded = seg.load({ headers }).finally(() => this.loading.delete(id));
      this.loading.set(id, loaded);
    }
    return this.loading.get(id);
  }

  /** The segmentations over a viewport: [{seg, type, visible}], `seg` being a display set. */
  representations(viewportId) {
    const { displaySetService, segmentationService } = this.services;
    return segmentationService
      .getSegmentationRepresentations(viewportId)
      .map(({ segmentationId, type, segments }) => ({
        seg: displaySetService.getDisplaySetByUID(segmentationId),
        type,
        visible: Object.values(segments).some(segment => segment.visible),
      }))
      .filter(({ seg }) => seg);
  }

  drawn(viewportId) {
    return this.representations(viewportId).map(({ seg }) => seg);
  }

  /** The names of our results that can be seen in a viewport. */
  namesIn(viewportId) {
    const ours = this.representations(viewportId).filter(
      ({ seg, visible }) => visible && this.results.isOurs(seg)
    );
    return [...new Set(ours.map(({ seg }) => this.results.nameOf(seg)))];
  }

  isShown(viewportId, images) {
    return this.viewports().some(
      viewport => viewport.id === viewportId && viewport.images === images
    );
  }

  /** After any change to what lies over viewports. */
  check() {
    this.removeForeign();
    this.viewports().forEach(({ id }) => this.receive(id));
    this.marks.update();
  }

  /** OHIF spreads a segmentation to every viewport of the same frame of reference. */
  removeForeign() {
    for (const { id, sets } of this.grid()) {
      const images = sets.filter(set => set && !set.isOverlayDisplaySet);
      const series = images.map(set => set.SeriesInstanceUID);
      if (!series.length) continue;
      this.drawn(id)
        .filter(seg => !sets.includes(seg) && !series.includes(seg.referencedSeriesInstanceUID))
        .forEach(seg => this.removeFrom(id, seg));
    }
  }

  removeFrom(viewportId, { displaySetInstanceUID: segmentationId }) {
    this.services.segmentationService.removeRepresentationsFromViewport(viewportId, {
      segmentationId,
    });
  }

  takeOff(viewportId, seriesUids) {
    const theirs = this.representations(viewportId).filter(({ seg }) =>
      seriesUids.includes(seg.SeriesInstanceUID)
    );
    theirs.forEach(({ seg }) => this.removeFrom(viewportId, seg));
    return theirs.some(({ visible }) => visible);
  }

  /** Go to what newly lies over a viewport, or switch it off if it is not the one to see there. */
  receive(viewportId) {
    const before = this.seen.get(viewportId) ?? new Set();
    const now = this.representations(viewportId);
    // first: each switch below calls us again
    this.seen.set(viewportId, new Set(now.map(({ seg }) => seg)));
    const came = now.filter(({ seg }) => !before.has(seg) && this.results.isOurs(seg));
    const unasked = came.filter(({ seg }) => !this.results.isWanted(seg));
    unasked.forEach(one => this.switch(viewportId, one, false));
    if (unasked.length) this.activateWanted(viewportId);
    const wanted = came.find(({ seg }) => this.results.isWanted(seg));
    if (wanted) this.scrollTo(viewportId, wanted.seg);
  }

  /** OHIF makes the last one that came the active one, and pales the others. */
  activateWanted(viewportId) {
    const { results } = this;
    const drawn = this.drawn(viewportId);
    const wanted = drawn.find(seg => results.isOurs(seg) && results.isWanted(seg));
    if (!wanted) return;
    const { segmentationService } = this.services;
    segmentationService.setActiveSegmentation(viewportId, wanted.displaySetInstanceUID);
  }

  switch(viewportId, { seg, type, visible }, on) {
    if (visible === on) return;
    this.services.segmentationService.toggleSegmentationRepresentationVisibility(viewportId, {
      segmentationId: seg.displaySetInstanceUID,
      type,
    });
  }

  /** A SEG of ours that is put into a viewport itself was asked for. */
  heed() {
    this.grid()
      .flatMap(({ sets }) => sets)
      .filter(set => set && isSegmentation(set) && this.results.isOurs(set))
      .forEach(seg => this.choose(seg.referencedSeriesInstanceUID, seg.SeriesInstanceUID));
  }

  /** From now on see this SEG on its series, and of ours no other model's. */
  choose(seriesUid, segSeriesUid) {
    if (this.results.chosen.get(seriesUid) === segSeriesUid) return;
    this.results.chosen.set(seriesUid, segSeriesUid);
    this.viewports()
      .filter(({ images }) => images.SeriesInstanceUID === seriesUid)
      .forEach(({ id }) =>
        this.representations(id)
          .filter(({ seg }) => this.results.isOurs(seg))
          .forEach(one => this.switch(id, one, this.results.isWanted(one.seg)))
      );
    this.viewports().forEach(({ id }) => this.activateWanted(id));
  }

  /** Where nobody has scrolled yet, go to the middle of the slices that hold a segment. */
  scrollTo(viewportId, seg) {
    const viewport = this.services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
    if (viewport.type !== 'stack' || viewport.getCurrentImageIdIndex() !== 0) return;
    const imageIds = viewport.getImageIds();
    const slices = (seg.labelMapImages ?? [])
      .flat()
      .filter(image => image.voxelManager.getScalarData().some(value => value !== 0))
      .map(image => imageIds.indexOf(image.referencedImageId))
      .sort((a, b) => a - b);
    if (slices.length) viewport.setImageIdIndex(slices[slices.length >> 1]);
  }

  showPanel() {
    if (this.panelShown) return;
    this.panelShown = true;
    this.services.panelService.activatePanel(SEGMENTATION_PANEL, true);
  }
}

let overlays;

const overlayExtension = {
  id: 'segnode.extension.overlays',
  onModeEnter(managers) {
    overlays = new Overlays(managers);
    overlays.start();
  },
  onModeExit() {
    overlays.stop();
  },
};
