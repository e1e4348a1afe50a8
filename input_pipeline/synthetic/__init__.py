"""Drawn pedestrians in three spectra, with captions, in the layouts of the published datasets."""
