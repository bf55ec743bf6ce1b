"""Number formats: which values a weight may take, and which code each weight gets."""
