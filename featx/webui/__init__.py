"""A local web page that shows a model's feature maps and attention for a photograph."""
