"""Operations on packed, jagged batches, each with a plain twin that defines it.

``qla_naive`` defines quasi-linear attention, ``qla`` is its fast form, ``qla_triton`` the same by Triton;
``crossing`` holds the forms of deduplicated attention, ``crossing_triton`` its kernels, ``flex`` torch's own fused
attention; ``weighted_attention`` attends to tokens that stand for many events. ``kernels`` says which form runs where,
``upload`` brings arrays there, ``hashing`` is the mixer of item ids.
"""

from vista.errors import needs

needs("model", "torch")
