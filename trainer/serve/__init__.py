"""An exported model behind HTTP: requests that are checked and limited, batches, metrics, reloads and an orderly end.

LitServe 0.2.19 has batches and workers too. It is not used: it handles no signals and closes its transport before the
HTTP server has stopped, so that requests are lost at the end; its queues have no bound; it has no metrics and no
reload; and it listens on all interfaces by default.
"""
