"""Black-box scenarios of input, surface, load and process faults for any OpenAI-compatible server.

Speaks plain HTTP over sockets of its own and knows nothing of how a server is made; what a server tells besides (metrics) is used
where it is there. Against a running server:

    python -m tests.reliability --url http://127.0.0.1:8000 --scale 0.1
"""
