"""The HTTP server: dialects in front of one engine.

    http_protocol, http_server             connections and heads within their bounds; the sockets, TLS, the admin socket
    deadline                               time limits that leave out when this process did not run
    strict_json, http_body                 bytes of a body become plain values or a typed refusal
    forbidden_fields                       what no dialect takes from a client
    sampling_fields, openai_constraint     what bodies of several dialects have in common
    ignored_fields                         counts what they bring for nothing
    turn, served_model                     one neutral turn: a conversation or a raw prompt in, a stream of steps out
    exchange, event_stream, json_reply     what every generating route does; a client that leaves ends its request
    direct_line                            the short way of an ordinary step to the socket
    text_route, token_routes               counting and converting tokens, without generating any
    access, request_context, traffic       keys and what a request is known by; how many may wait
    refusal                                what is said when the answer is no
    metrics, exposition, tracing           what is counted, how Prometheus reads it, spans
    metric_labels, sglang_metrics          families of the text format; SGLang's names for the same figures
    openapi, reply_shape                   what every route takes and answers, as a document
    service, operations, app               shared state, the operator's routes, all routes
    web_page, page_routes                  the page at `/`: its files, and what only it asks
    serve, banner                          the process: port, loading, draining, exit code

A dialect is a set of files with one prefix: `_request` (a body becomes an exchange), `_response` (steps become bytes), `_shapes` (what
comes out, as types) and `_routes`.

    openai         /v1/chat/completions, /v1/models; openai_client is the same wire from the other side
    completions    /v1/completions
    responses      /v1/responses; response_store keeps what may be continued, background_response what nobody waits for
    anthropic      /v1/messages, /v1/messages/count_tokens
    sglang         /generate
    zai            /api/paas/v4/chat/completions: the OpenAI wire with other errors and defaults

`dialects` knows which of them a path belongs to. Refuses to own: prompts and parsing (`text`), scheduling and sampling (`engine`).
"""
