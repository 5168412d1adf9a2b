"""What the code of other packages' models raises for images, levels or parts that it cannot do with."""

# Every kind that is about what was given, none that is about the machine (OSError, MemoryError) or the user (Ctrl-C).
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,  # a variable that only some of its paths set
    RuntimeError,
    TypeError,
    ValueError,
)
