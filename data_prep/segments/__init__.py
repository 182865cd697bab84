"""From a time range of a source to encoded, scored and filtered segments."""
