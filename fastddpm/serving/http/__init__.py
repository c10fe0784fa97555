"""`fastddpm serve`: HTTP around `fastddpm.serving.Scheduler` (docs/serving.md), with the extra ``serve``.

Data flows `door` (token, log, metrics) -> `protocol` or `images` (a request read, as `asked.Asked`) ->
`service` (drawings awaited) -> `models` (a scheduler each). `server` runs the whole, from start to end.
"""
