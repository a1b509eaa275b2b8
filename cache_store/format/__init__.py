"""What lies on disk, byte by byte; docs/format.md says the same for readers in other languages.

Read in this order: ``layout`` (what lies where), ``keys`` (users as keys and buckets), ``record`` and ``quantize``
(the bytes of one user), ``index`` and ``pages`` (where a record lies), ``receipt``, ``packed`` and ``manifest`` (what a
shard and a generation say of themselves), ``lines`` (what is live); ``checked`` reads small files that anybody may have
written, ``shown`` is how things look at a prompt.
"""
