"""What it is worth: a module NAME here with ``run`` is ``vista study NAME``.

``quality`` asks what of a long history each kind of summary keeps; read ``protocol`` (data, slates, slices), then
``contexts`` (what stage 2 is given: ``rivals``, their ``tokens``, ``groups`` and ``reader``; the record's sequence
``alone``, or few ``learned`` tokens made of it), then ``study`` (one run) and ``gains``. ``pays`` asks it of data of
one's own. ``joint`` compares one model for both tasks with one each;
``movielens`` our model with SASRec (``recbole_sasrec``); ``downstream`` a ranker of one's own with and without
summaries.
"""
