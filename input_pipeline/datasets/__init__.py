"""One module per dataset: `load(data_dir, *, modalities, allow_missing_files)` returns {split name: Records}.

The module's name is what `config.data.name` says. A module may take further keyword arguments (`data.options`).
The split "train" is trained on; the others, at least one, are for evaluation. `counts(data_dir, *, modalities)` takes
the same options and tells how much a whole copy holds, {split name: Counts}, without opening a picture; a published
dataset says it without a look at the disk.
"""
