"""What is drawn, as data: charts, spectra, pages and sheets, for any renderer to draw."""
