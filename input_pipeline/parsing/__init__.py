"""What the dataset modules share: finding the data folder, tables of pictures, captions."""
