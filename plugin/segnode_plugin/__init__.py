"""Inside Orthanc: intake, facts, routes, dispatch and the web pages."""
