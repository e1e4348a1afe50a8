"""One module per dataset: `load(data_dir, *, modalities, allow_missing_files)` returns {split name: Records}.

The module's name is what `config.data.name` says. A module may take further keyword arguments (`data.options`).
The split "train" is trained on; the others, at least one, are for evaluation. `counts(*, modalities)` takes the same
options and tells, without looking at the disk, how much there is to train on: dict(identities, cameras, rows).
"""
