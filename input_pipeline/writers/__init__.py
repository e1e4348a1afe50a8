"""One module per layout, named like it: `write(root, plan)` draws a dataset with the folders of an official one."""
