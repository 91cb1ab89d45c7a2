/**
 * OHIF 3.13.2 on Orthanc's own address. The parts of our extension, `ohif-*.js`, come before this
 * one, all in one function.
 */

const NOTE = 'Research use only. AI overlays are not verified.';

window.config = {
  name: 'segnode',
  routerBasename: window.PUBLIC_URL,
  extensions: [overlayExtension],
  modes: [],
  customizationService: {
    // the tour of a first visit lies over the page and takes every click
    'ohif.tours': { $set: [] },
    'panelSegmentation.disableEditing': { $set: true },
    // every result with an eye of its own, not one at a time
    'panelSegmentation.tableMode': { $set: 'expanded' },
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
