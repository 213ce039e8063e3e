"""Pages and pictures: the page template, charts, the report of a run. Sweeps and data checks use the same page."""
