"""Sources of maps in the interfaces of other packages, one file per package, which it imports when it is called.

A source is a feature extractor, from `create_model(..., features_only=True)`, or a `necks.Pipeline`.
"""
