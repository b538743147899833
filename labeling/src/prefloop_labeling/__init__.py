"""A real Argilla server in one command: its relational database is the search index, a bundled
Redis is the queue.
"""

__version__ = "0.1.0"
