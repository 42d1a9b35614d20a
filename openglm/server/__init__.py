"""The HTTP server: dialects in front of one engine.

    strict_json, http_body    bytes of a body become plain values or a `RequestError`
    openai_request            an OpenAI chat body becomes a `TurnRequest`
    served_model, turn        one neutral turn: conversation in, stream of events out
    openai_response           events become wire chunks or one message
    event_stream              chunks become server-sent events; a client that leaves ends its request
    access, admission         keys; how many requests may wait
    app, serve                routes; process life: loading, ready, drain

Refuses to own: prompts and parsing (`text`), scheduling and sampling (`engine`).
"""
