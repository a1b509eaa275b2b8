"""Tables to a generation: ``summarize`` (all), ``refresh`` (what changed), over ``bucket_task`` and ``publish``;
``plan`` says what it would cost.
"""
