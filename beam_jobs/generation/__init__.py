"""Tables to a generation: ``summarize`` (all) and ``refresh`` (what changed, found by ``changed_users``), over
``bucket_task`` (what a worker does, by the batches of ``feed``) and ``publish`` (past the ``gate``); ``plan`` says
what it would cost; ``fold`` makes one generation of many.
"""
