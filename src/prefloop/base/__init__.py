"""Files that are whole, the console, HTTP, interrupts, redaction: ground that knows nothing of
models.
"""
