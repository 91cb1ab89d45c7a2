"""Right lung, left lung and low attenuation areas in thoracic CT."""
