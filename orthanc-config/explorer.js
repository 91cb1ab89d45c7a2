/** Buttons in Orthanc's own pages: from a study or a series to the viewer, its jobs and a model. */
(function () {
  const CLASS = 'segnode-button';

  const viewer = (study, series) =>
    `/ohif/viewer?StudyInstanceUIDs=${encodeURIComponent(study)}` +
    (series ? `&initialSeriesInstanceUID=${encodeURIComponent(series)}` : '');
  const jobs = study => `/segnode/studies/${encodeURIComponent(study)}`;
  const run = series => `/segnode/series/${encodeURIComponent(series)}/run`;

  const get = address => $.ajax({ url: address, dataType: 'json', cache: false });

  function addButtons(page, links) {
    $(`#${page} .${CLASS}`).remove();
    // each goes right below the list, so the last one first
    links.reverse().forEach(([text, address, icon]) => {
      const link = $('<a>').attr({
        href: address,
        // without it, jQuery Mobile would take the page into its own
        rel: 'external',
        'data-role': 'button',
        'data-icon': icon,
        'data-theme': 'e',
      });
      link.addClass(CLASS).text(text).insertAfter($(`#${page}-info`)).button();
    });
  }

  /** Call when a page of Orthanc Explorer opens, with Orthanc's identifier of what it shows. */
  function onPage(page, show) {
    $(document).on('pagebeforeshow', `#${page}`, () => {
      const id = $.mobile.pageData?.uuid;
      // by the time of an answer another page may be open
      if (id) show(id, links => $.mobile.pageData?.uuid === id && addButtons(page, links));
    });
  }

  onPage('study', (id, add) => {
    get(`../studies/${id}`).done(({ MainDicomTags: { StudyInstanceUID: study } }) =>
      add([
        ['Open in OHIF', viewer(study), 'search'],
        ['AI jobs', jobs(study), 'grid'],
      ])
    );
  });

  onPage('series', (id, add) => {
    $.when(get(`../series/${id}/study`), get(`../series/${id}`)).done(([ofStudy], [ofSeries]) => {
      const study = ofStudy.MainDicomTags.StudyInstanceUID;
      const series = ofSeries.MainDicomTags.SeriesInstanceUID;
      add([
        ['Open in OHIF', viewer(study, series), 'search'],
        ['AI jobs', jobs(study), 'grid'],
        ['Run a model', run(series), 'gear'],
      ]);
    });
  });
})();
