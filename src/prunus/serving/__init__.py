"""An HTTP server over the CPU runtime. Needs the extra ``serve`` (starlette, uvicorn), not torch.

bytes -> body.py (bounded) -> requests.py (strict) -> tokens.py -> batcher.py (one worker, packed batches)
      -> postprocessing.py -> JSON

    create_app(engine, options)      an ASGI application          serve(directory, port=8000)      a process of it
"""
