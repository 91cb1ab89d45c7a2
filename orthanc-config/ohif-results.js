/** Which of OHIF's SEGs are our results, to which images each belongs, and which is to be seen. */

const MANUFACTURER = 'segnode';

const isSegmentation = displaySet => displaySet.Modality === 'SEG';

const nameOf = ({ model, version }) => [model, version].filter(Boolean).join(' ');

class Results {
  constructor({ displaySetService }, ledger) {
    this.displaySetService = displaySetService;
    this.ledger = ledger;
    // by series: the SEG that somebody asked for
    this.chosen = new Map();
    // SEGs that came while the study was open and that nobody asked for yet
    this.offered = new Set();
    // SEGs that the ledger called valid once, with their names
    this.named = new Map();
  }

  /** Keep the names of valid results. */
  note(overlays) {
    overlays.forEach(overlay => this.named.set(overlay.seg_series_uid, nameOf(overlay)));
  }

  displaySets(seriesUid) {
    return this.displaySetService.getDisplaySetsForSeries(seriesUid) ?? [];
  }

  /** The ledger's results for a series, first to show first. */
  resultsFor(seriesUid) {
    return this.ledger.overlays.filter(({ series_uid }) => series_uid === seriesUid);
  }

  /** The SEGs among them that OHIF knows, and that may lie over these images. */
  segmentationsOf(images) {
    return this.resultsFor(images.SeriesInstanceUID)
      .filter(({ seg_series_uid }) => !this.offered.has(seg_series_uid))
      .map(({ seg_series_uid }) => this.displaySets(seg_series_uid).find(isSegmentation))
      .filter(seg => seg && this.belongs(seg, images));
  }

  /** Whether the SEG itself, too, says that it was made from these images. */
  belongs(seg, images) {
    if (seg.referencedSeriesInstanceUID !== images.SeriesInstanceUID) {
      log('A segmentation refers to another series than the ledger says; it is not shown.', {
        segmentation: seg.SeriesInstanceUID,
        refersTo: seg.referencedSeriesInstanceUID,
      });
      return false;
    }
    // a SEG that OHIF met before its images knows their series only
    seg.referencedDisplaySetInstanceUID ??= images.displaySetInstanceUID;
    return seg.referencedDisplaySetInstanceUID === images.displaySetInstanceUID;
  }

  isOurs(seg) {
    return this.named.has(seg.SeriesInstanceUID) || seg.instance?.Manufacturer === MANUFACTURER;
  }

  /** Whether a SEG is the one to see on its series; of its model, the other stacks are too. */
  isWanted({ SeriesInstanceUID: uid, referencedSeriesInstanceUID: series }) {
    const results = this.resultsFor(series);
    const wanted = this.chosen.get(series) ?? results[0]?.seg_series_uid;
    const modelOf = seg => results.find(({ seg_series_uid }) => seg_series_uid === seg)?.model;
    return uid === wanted || (modelOf(uid) !== undefined && modelOf(uid) === modelOf(wanted));
  }

  /** Model and version, from the ledger or else from the SEG itself. */
  nameOf(seg) {
    const [segment] = [seg.instance?.SegmentSequence ?? []].flat();
    const [made] = [segment?.SegmentationAlgorithmIdentificationSequence ?? []].flat();
    const model = made?.AlgorithmName ?? segment?.SegmentAlgorithmName ?? seg.SeriesDescription;
    return (
      this.named.get(seg.SeriesInstanceUID) ?? nameOf({ model, version: made?.AlgorithmVersion })
    );
  }
}
