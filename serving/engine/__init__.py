"""The embedded engine: a model server that speaks vLLM's HTTP API. Imports torch, never Django."""

import os

# GNU OpenMP waits by spinning, by default for milliseconds. When another process (training, a browser) holds a core, each
# of the hundred barriers of a step then costs a time slice: measured on 2 cores beside two busy processes, 19 tokens/s
# instead of 207 at 8 streams. 10,000 turns are some 0.1 ms. Must be set before torch loads the library.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
