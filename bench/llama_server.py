"""llama.cpp's OpenAI server until a signal. Runs in the environment of the package `xllamacpp`, which has no `lares`.

python llama_server.py GGUF PORT NUM_SLOTS CONTEXT_OF_ALL_SLOTS
"""

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve."""
    file, port, num_slots, context = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = int(port)
    params.n_parallel = int(num_slots)
    params.n_ctx = int(context)
    params.kv_unified = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = False
    # Held: the server ends with the object.
    server = xllamacpp.Server(params)
    print(f"serving on {server.listening_address}; built with {xllamacpp.get_system_info()}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
