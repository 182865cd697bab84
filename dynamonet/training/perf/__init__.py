"""Where the time goes, how fast the device is, and what to change."""
