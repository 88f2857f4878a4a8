"""llama.cpp's server, as the package `xllamacpp` brings it: llama_server.py MODEL.gguf NAME PORT

Runs in an environment of its own, which has that package and nothing of ours.
"""

import signal
import sys

import xllamacpp

path, name, port = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.model_alias = {name}
params.port = int(port)
params.n_parallel = 4
params.warmup = False
server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
signal.pause()
