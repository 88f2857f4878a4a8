"""llama.cpp's server, as the package `xllamacpp` brings it: llama_server.py MODEL.gguf NAME PORT PARALLEL THREADS

Runs in an environment of its own, which has that package and nothing of ours. PARALLEL requests are answered at once,
each with up to 1024 tokens.
"""

import signal
import sys

import xllamacpp

path, name, port, parallel, threads = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.model_alias = {name}
params.port = int(port)
params.n_parallel = int(parallel)
params.n_ctx = 1024 * params.n_parallel
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.warmup = False
server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
signal.pause()
