"""The HTTP server: dialects in front of one engine.

    strict_json, http_body            bytes of a body become plain values or a typed refusal
    openai_request, openai_response   the OpenAI wire, in and out; openai_client is the same wire from the other side
    turn, served_model                one neutral turn: a conversation in, a stream of events out
    event_stream                      server-sent events; a client that leaves ends its request
    access, traffic, refusal          keys; how many may wait; what is said when the answer is no
    service, openai_routes, app       shared state, handlers, routes
    web_page, page_routes             the page at `/`: its files, and what only it asks
    serve, banner                     the process: port, loading, draining, exit code

A further dialect adds a request and a response module and a route; everything in between stays. Refuses to own: prompts and
parsing (`text`), scheduling and sampling (`engine`).
"""
