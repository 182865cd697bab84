"""The data set on disk: plain WebDataset tars with a Parquet index and a card beside them."""
