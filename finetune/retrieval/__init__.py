"""Search by features: nearest neighbours, outliers, what to label next."""
