"""Pages, viewer and searches: one WSGI application, and a thin adapter to Orthanc."""
