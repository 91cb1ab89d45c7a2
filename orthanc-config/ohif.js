/**
 * OHIF 3.13.2 on Orthanc's own address, with an extension that shows, without a click, the result
 * which segnode's ledger names for the series on screen.
 *
 * A viewport never gets the segmentation of another series: no overlay is better than a wrong one.
 */
(function () {
  const NOTE = 'Research use only. AI overlays are not verified.';
  const LABELMAP = 'Labelmap';
  const SEGMENTATION_PANEL = '@ohif/extension-cornerstone.panelModule.panelSegmentation';

  const log = (text, detail) => console.warn(`[segnode] ${text}`, detail ?? '');

  const isSegmentation = displaySet => displaySet.Modality === 'SEG';

  const itemsOf = ({ ContentSequence }) => [ContentSequence ?? []].flat();

  /** Whether an item of a report, or one below it, lies somewhere in an image. */
  const hasCoordinates = item =>
    String(item.ValueType).startsWith('SCOORD') || itemsOf(item).some(hasCoordinates);

  function studiesInAddress() {
    const query = new URLSearchParams(window.location.search);
    return query.getAll('StudyInstanceUIDs').flatMap(value => value.split(',')).filter(Boolean);
  }

  /** Whether the address itself says which series to open. */
  function seriesInAddress() {
    const names = [...new URLSearchParams(window.location.search).keys()];
    return names.some(name => /^(initial)?SeriesInstanceUIDs?$/i.test(name));
  }

  /** Ask the ledger: [{series_uid, seg_series_uid, model, description}], first to show first. */
  async function overlaysOf(studyUid) {
    const address = `/segnode/api/overlays?StudyInstanceUIDs=${encodeURIComponent(studyUid)}`;
    try {
      const answer = await fetch(address, { credentials: 'same-origin', cache: 'no-store' });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      return (await answer.json()).overlays;
    } catch (error) {
      log('The ledger did not say which overlays belong to this study; none is shown.', error);
      return [];
    }
  }

  class Overlays {
    constructor({ servicesManager, commandsManager }) {
      this.services = servicesManager.services;
      this.commands = commandsManager;
      this.ledger = [];
      this.opened = seriesInAddress();
      this.panelShown = false;
      this.busy = new Set();
    }

    async start() {
      const { cornerstoneViewportService, displaySetService, segmentationService } = this.services;
      const settle = () => this.settle();
      this.subscriptions = [
        displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, settle),
        cornerstoneViewportService.subscribe(
          cornerstoneViewportService.EVENTS.VIEWPORT_DATA_CHANGED,
          settle
        ),
        segmentationService.subscribe(
          segmentationService.EVENTS.SEGMENTATION_REPRESENTATION_MODIFIED,
          () => this.removeForeign()
        ),
      ];
      this.ledger = (await Promise.all(studiesInAddress().map(overlaysOf))).flat();
      this.settle();
    }

    stop() {
      this.subscriptions.forEach(subscription => subscription.unsubscribe());
      this.ledger = [];
    }

    settle() {
      // OHIF restores a viewport's own segmentations after it announces the viewport
      setTimeout(() => {
        this.readReportsAsText();
        this.openSeriesWithOverlay();
        this.viewports().forEach(viewport => this.show(viewport));
      }, 50);
    }

    /** Viewports that show images: [{id, images}], `images` being OHIF's display set. */
    viewports() {
      const { cornerstoneViewportService, displaySetService, viewportGridService } = this.services;
      const found = [];
      viewportGridService.getState().viewports.forEach(({ displaySetInstanceUIDs }, id) => {
        const sets = (displaySetInstanceUIDs ?? []).map(displaySetService.getDisplaySetByUID);
        // a fusion of two series has no single series to belong to
        if (sets.length !== 1 || !sets[0] || sets[0].isOverlayDisplaySet) return;
        if (cornerstoneViewportService.getCornerstoneViewport(id)) {
          found.push({ id, images: sets[0] });
        }
      });
      return found;
    }

    displaySets(seriesUid) {
      return this.services.displaySetService.getDisplaySetsForSeries(seriesUid) ?? [];
    }

    /** The SEG that the ledger names first for a series, once the viewer knows it. */
    segmentationOf(images) {
      const first = this.ledger.find(({ series_uid }) => series_uid === images.SeriesInstanceUID);
      const seg = first && this.displaySets(first.seg_series_uid).find(isSegmentation);
      return seg && this.belongs(seg, images) ? seg : undefined;
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
      if (this.opened || !viewports.length || !this.ledger.length) return;
      const withOverlay = new Set(this.ledger.map(overlay => overlay.series_uid));
      this.opened = viewports.some(({ images }) => withOverlay.has(images.SeriesInstanceUID));
      const [images] = this.displaySets(this.ledger[0].series_uid);
      if (this.opened || !images) return;
      this.opened = true;
      const viewportsToUpdate = this.services.hangingProtocolService.getViewportsRequireUpdate(
        viewports[0].id,
        images.displaySetInstanceUID
      );
      this.commands.runCommand('setDisplaySetsForViewports', { viewportsToUpdate });
    }

    /** Draw the ledger's segmentation over a viewport that has none yet. */
    async show({ id, images }) {
      const { segmentationService, userAuthenticationService } = this.services;
      const seg = this.segmentationOf(images);
      const own = drawn => drawn.referencedSeriesInstanceUID === images.SeriesInstanceUID;
      const busy = `${id} ${images.displaySetInstanceUID}`;
      if (!seg || this.busy.has(busy) || this.drawn(id).some(own)) return;
      this.busy.add(busy);
      try {
        await seg.load({ headers: userAuthenticationService.getAuthorizationHeader() });
        if (!this.isShown(id, images)) return;
        const segmentationId = seg.displaySetInstanceUID;
        await segmentationService.addSegmentationRepresentation(id, {
          segmentationId,
          type: LABELMAP,
        });
        this.scrollTo(id, seg);
        this.showPanel();
      } catch (error) {
        log('A segmentation could not be loaded; none is shown.', error);
      } finally {
        this.busy.delete(busy);
      }
    }

    /** OHIF's display sets of the segmentations that lie over a viewport. */
    drawn(viewportId) {
      const { displaySetService, segmentationService } = this.services;
      return segmentationService
        .getSegmentationRepresentations(viewportId)
        .map(({ segmentationId }) => displaySetService.getDisplaySetByUID(segmentationId))
        .filter(Boolean);
    }

    isShown(viewportId, images) {
      return this.viewports().some(
        viewport => viewport.id === viewportId && viewport.images === images
      );
    }

    /** OHIF spreads a segmentation to every viewport of the same frame of reference. */
    removeForeign() {
      for (const { id, images } of this.viewports()) {
        this.drawn(id)
          .filter(seg => seg.referencedSeriesInstanceUID !== images.SeriesInstanceUID)
          .forEach(({ displaySetInstanceUID: segmentationId }) => {
            this.services.segmentationService.removeRepresentationsFromViewport(id, {
              segmentationId,
            });
          });
      }
    }

    /** Where nobody has scrolled yet, go to the middle of the slices that hold a segment. */
    scrollTo(viewportId, seg) {
      const viewport = this.services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
      if (viewport.type !== 'stack' || viewport.getCurrentImageIdIndex() !== 0) return;
      const imageIds = viewport.getImageIds();
      const slices = seg.labelMapImages
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

  const overlayExtension = {
    id: 'segnode.extension.overlays',
    onModeEnter(managers) {
      this.overlays = new Overlays(managers);
      this.overlays.start();
    },
    onModeExit() {
      this.overlays.stop();
    },
  };

  window.config = {
    name: 'segnode',
    routerBasename: window.PUBLIC_URL,
    extensions: [overlayExtension],
    modes: [],
    customizationService: {
      // the tour of a first visit lies over the page and takes every click
      'ohif.tours': { $set: [] },
      'panelSegmentation.disableEditing': { $set: true },
    },
    whiteLabeling: {
      createLogoComponentFn: React =>
        React.createElement('span', { style: { color: '#ffb74d', fontSize: '14px' } }, NOTE),
    },
    showStudyList: true,
    maxNumberOfWebWorkers: 3,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: false,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    disableConfirmationPrompts: true,
    // its strip covers the lower edge of the images; the note in the header stays instead
    investigationalUseDialog: { option: 'never' },
    maxNumRequests: { interaction: 20, thumbnail: 5, prefetch: 10 },
    showErrorDetails: 'always',
    defaultDataSourceName: 'dicomweb',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'dicomweb',
        configuration: {
          friendlyName: 'Orthanc',
          name: 'orthanc',
          wadoUriRoot: '/wado',
          qidoRoot: '/qido',
          wadoRoot: '/dicom-web',
          qidoSupportsIncludeField: true,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: true,
          supportsFuzzyMatching: false,
          supportsWildcard: true,
          dicomUploadEnabled: false,
          omitQuotationForMultipartRequest: true,
          singlepart: 'video',
          bulkDataURI: { enabled: true },
        },
      },
    ],
  };
})();
