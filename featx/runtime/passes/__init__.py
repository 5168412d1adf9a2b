"""What an extractor is made faster by before a runtime computes it: each pass changes modules or weights in place."""
