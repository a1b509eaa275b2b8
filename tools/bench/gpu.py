"""The whole device path on one card: ceilings, stage 1, the feature path, ranking, training; one JSON and one table.

Every rate stands beside what bounds it, measured in the same run on the same card: a matrix product, a copy inside the
device's memory, a copy from pinned memory. ``make gpu`` runs the tests marked ``gpu`` first and then this, and writes
``docs/results/gpu.json`` and ``gpu.md``; ``-p device=cpu --quick`` runs every line without a GPU, so that the script
itself is tested, and its figures then say nothing about one.

Errors are the largest difference over the largest value: of stage 1 and of the crossing against float64 on the CPU, of
the ranker, which knows no float64, against float32 on the CPU.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from beam_jobs.generation.bucket_task import torch_threads
from cache_store import Group, RecordSchema, Store
from cache_store.native.crew import usable_cores
from cache_store.testing import stored
from cache_store.torch.feature import SummaryFeature, SummaryLoader
from tools.bench import feature, rank, summarize
from tools.bench.device import Device, elsewhere, usable, write
from tools.bench.harness import Figure, Result, in_turn, median, ratio
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SummarizerConfig
from vista.model import VistaModel
from vista.ops import crossing
from vista.serving.captured import Captured, cuda_graph
from vista.serving.context_graph import ContextGraph
from vista.stage1.exact_tokens import ExactTokenGroup
from vista.stage2.context_kv import ContextKV
from vista.training.compiled import compile_layers
from vista.training.examples import ExampleConfig
from vista.training.loader import Arrays, Loader, LoaderConfig
from vista.training.survey import survey

CONTEXT = (64, 928)
"""Seeds and recent events: with ``now``, 993 context tokens."""


def run(
    quick: bool, device: str = "cuda", out: str | None = None, only: str | None = None, seconds: float = 170.0
) -> Result:
    """Figures of the whole path on ``device``; with ``out``, also written below that folder, after every part.

    What fails, or is not begun within ``seconds``, is a note, and the rest is measured; where the device is of no more
    use to this process, by another one. ``only`` names parts, with a comma between them.
    """
    on = Device(device)
    unknown = set((only or "ceilings").split(",")) - PARTS.keys()
    if unknown:
        told = ", ".join(sorted(unknown))
        raise typer.BadParameter(f"only: expected names among {', '.join(PARTS)}, found {told}")
    result = Result({"device": device, **on.card})
    start = time.perf_counter()
    failed: list[Exception] = []
    left = [name for name in PARTS if only is None or name in only.split(",")]
    with torch_threads(1):
        while left:
            name = left.pop(0)
            spent = time.perf_counter() - start
            if spent > seconds:
                failed.append(TimeoutError(f"{name}: not begun, {spent:.0f} s were over"))
                result.notes.append(str(failed[-1]))
                continue
            try:
                PARTS[name](result, on, quick)
            except Exception as error:  # an hour of a card is dear: what the others find is still written
                failed.append(error)
                result.notes.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")
                if left and not usable(on):
                    elsewhere(result, ["ceilings", *left], quick, device, seconds - spent)
                    left = []
            _finish(result, on, start, out)
    if not on.cuda:
        told = "No GPU: every line ran, on the CPU and by the plain forms; no figure is about a GPU."
        result.notes.append(told)
    _finish(result, on, start, out)
    if failed:
        raise failed[0]
    return result


def _finish(result: Result, on: Device, start: float, out: str | None) -> None:
    result.figures["wall"] = Figure(time.perf_counter() - start, "s", target=200.0, at_least=False)
    if not on.cuda:
        for name, figure in result.figures.items():
            if not name.endswith("_error"):
                result.figures[name] = replace(figure, target=None)
    if out is not None:
        write(Path(out), result)


def _ceilings(result: Result, on: Device, quick: bool) -> None:
    n, size, repeats = (256, 1 << 22, 3) if quick else (8_192, 1 << 30, 20)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(n, n, device=on.torch).to(dtype)
        product = {"product": on.finished(functools.partial(torch.matmul, a, a))}
        rate = 2.0 * n**3 / in_turn(product, repeats, warmup=3)["product"]
        result.figures[f"matmul_{name}"] = median(rate / 1e12, "TFLOP/s")
    bytes_ = torch.empty(size, dtype=torch.uint8, device=on.torch).zero_()
    into = torch.empty_like(bytes_)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=on.cuda).zero_()
    sides = {
        "memory": on.finished(lambda: into.copy_(bytes_)),
        "pinned": on.finished(lambda: into.copy_(host, non_blocking=True)),
    }
    seconds = in_turn(sides, repeats, warmup=3)
    result.figures["memory_copy"] = median(2 * size / seconds["memory"] / 1e9, "GB/s")
    result.figures["pinned_copy"] = median(size / seconds["pinned"] / 1e9, "GB/s")


def _stage1(result: Result, on: Device, quick: bool) -> None:
    users, mean, width, heads = (4, 128, 64, 2) if quick else (256, 2_048, 256, 4)
    model = summarize.built(width, 3, heads, 256, 64, 0, 0, str(on.torch))
    events = summarize.histories(summarize.lengths_of(users, mean))
    exact = copy.deepcopy(model).cpu()
    for part in (exact.events, exact.events.items):
        part.cpu().double()
    exact.double()
    with torch.no_grad():
        few = events.select(np.arange(2))
        found, wanted = model.summarize(few).tokens["seeds"], exact.summarize(few).tokens["seeds"]
        result.figures["stage1_error"] = _error(found, wanted, 1e-3)
        sides = {"seeds": on.finished(lambda: model.summarize(events))}
        seconds = in_turn(sides, 3 if quick else 10)["seeds"]
    work = summarize.operations(model, len(events), users)
    peak = result.figures["matmul_float32"].value * 1e12
    result.figures["stage1_events"] = median(len(events) / seconds, "events/s")
    result.figures["stage1_of_matmul"] = median(work / seconds / peak, "x", target=0.5)


def _item_tokens(result: Result, on: Device, quick: bool) -> None:
    """Item tokens and counters of whole histories, to the bit those of NumPy, which runs beside."""
    users, mean = (4, 128) if quick else (256, 2_048)
    plain = VistaModel(ModelConfig(embedding=EmbeddingConfig(rows=4_096))).eval()
    ours = copy.deepcopy(plain).to(on.torch)
    (group,), (twin,) = ([*m.summarizer.token_groups] for m in (ours, plain))
    assert isinstance(group, ExactTokenGroup)
    group.in_torch = True
    events = summarize.histories(summarize.lengths_of(users, mean))
    everyone = np.arange(users)
    with torch.no_grad():
        on_device, by_numpy = (
            functools.partial(g.prefixes, events, events.lengths, everyone, True) for g in (group, twin)
        )
        found, wanted = on_device(), by_numpy()
        wrong = sum(
            int((found[n].cpu().view(torch.uint8) != x.view(torch.uint8)).sum()) for n, x in wanted.items()
        )
        result.figures["item_tokens_error"] = Figure(float(wrong), "bytes", target=0.0, at_least=False)
        seconds = in_turn({"device": on.finished(on_device), "numpy": by_numpy}, 3 if quick else 5)
    result.figures["item_tokens_events"] = median(len(events) / seconds["device"], "events/s")
    result.figures["item_tokens_against_numpy"] = ratio(seconds["numpy"], seconds["device"])


def _features(result: Result, on: Device, quick: bool) -> None:
    users, repeats = (600, 3) if quick else (8_000, 40)
    rng = np.random.default_rng(1)
    batches = [rng.choice(users, feature.BATCH, replace=False) for _ in range(8)]
    for codec, tokens in (("float16", 255), ("int8", 481)):
        schema = RecordSchema((Group("tokens", tokens, 64, codec),))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            with stored(path, schema, feature.random_tokens(users, schema)) as store:
                by_default = _reading(on, store, batches, repeats)["ahead"] / len(batches)
            with Store.open(path, threads=max(2, usable_cores() // 2)) as store:
                seconds = _reading(on, store, batches, repeats)
        ahead = seconds["ahead"] / len(batches)
        result.figures[f"lookup_{codec}_of_pinned_copy"] = ratio(seconds["copy"], ahead, target=0.9)
        result.figures[f"lookup_{codec}_threads_against_two"] = ratio(by_default, ahead)
        result.figures[f"lookup_{codec}_users"] = median(feature.BATCH / ahead, "users/s")
        result.figures[f"lookup_{codec}_latency"] = median(seconds["lookup"] * 1e3, "ms")
        moved = feature.BATCH * (schema.row_bytes + tokens * 64 * 2) / result.figures["memory_copy"].value
        result.figures[f"decode_{codec}_of_memory"] = median(moved / seconds["decode"] / 1e9, "x")


def _reading(on: Device, store: Store, batches: list[np.ndarray], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of a lookup, of copying as many bytes from pinned memory, of decoding, of all batches read ahead."""
    module = SummaryFeature(store, on_device=True, dtype=torch.bfloat16).to(on.torch)
    size = feature.BATCH * store.row_bytes
    host = torch.empty(size, dtype=torch.uint8, pin_memory=on.cuda).zero_()
    into = torch.empty(size, dtype=torch.uint8, device=on.torch)
    turn = itertools.cycle(batches)
    rows = module.fetch(batches[0]).rows
    assert rows is not None
    sides = {
        "lookup": on.finished(lambda: module(next(turn))),
        "copy": on.finished(lambda: into.copy_(host, non_blocking=True)),
        "decode": on.finished(lambda: module.decoder(rows, torch.bfloat16)),
        "ahead": on.finished(lambda: list(SummaryLoader(batches, module, lambda b: b))),
    }
    return in_turn(sides, repeats, warmup=3)


def _model(on: Device, quick: bool) -> VistaModel:
    seeds, recent = (8, 24) if quick else CONTEXT
    torch.manual_seed(0)
    config = ModelConfig(
        width=64,
        embedding=EmbeddingConfig(rows=4_096) if quick else EmbeddingConfig(),
        summarizer=SummarizerConfig(seeds=seeds),
        ranker=RankerConfig(layers=2, heads=2, recent=recent),
    )
    return VistaModel(config).to(on.torch)


def _sizes(quick: bool) -> tuple[int, int, int]:
    """Candidates of a request, repeats, and requests of a batch."""
    return (100, 3, 2) if quick else (1_000, 30, 16)


def _requests(on: Device, quick: bool) -> tuple[VistaModel, dict[str, Any], Tensor]:
    """A model, a batch of requests for it, and all their candidates, int64 [B]."""
    candidates, _, many = _sizes(quick)
    model = _model(on, quick).eval()
    given = rank.request(model, many)
    given["tokens"] = {name: x.to(on.torch) for name, x in given["tokens"].items()}
    drawn = np.random.default_rng(1).integers(0, rank.ITEMS, many * candidates)
    return model, given, torch.from_numpy(drawn).to(on.torch)


def _ranking(result: Result, on: Device, quick: bool) -> None:
    candidates, repeats, many = _sizes(quick)
    model, given, items = _requests(on, quick)
    one = rank.rows(given, np.arange(1))
    whole = np.arange(many + 1) * candidates
    plans = [crossing.Plan.of(whole[: n + 1], on.torch) for n in (1, many)]
    with torch.inference_mode():
        context, contexts = (model.ranker.context(**g) for g in (one, given))
        exact = copy.deepcopy(model).cpu()
        on_cpu = {**one, "tokens": {name: x.cpu() for name, x in one["tokens"].items()}}
        mine = items[:candidates]
        wanted = exact.ranker.rank(exact.ranker.context(**on_cpu), mine.cpu(), whole[:2])

        def work(plan: crossing.Plan, item: Tensor, **tensors: Any) -> Tensor:
            return model.ranker.rank(ContextKV(**tensors), item, plan)

        step = Captured(work) if on.cuda else Captured(work, _again)

        def shared(n: int) -> Tensor:
            ctx, plan = (context, plans[0]) if n == 1 else (contexts, plans[1])
            return step(n, lambda: plan, item=items[: n * candidates], **ctx.tensors())

        def ranked(ctx: ContextKV) -> Tensor:
            return model.ranker.rank(ctx, mine, plans[0])

        for n in (1, 1, many, many):  # recorded when a shape comes again
            shared(n)
        graph = ContextGraph(model.ranker, model.config.ranker.recent, *([] if on.cuda else [_again]))
        by_graph = functools.partial(graph, **one)
        by_graph()
        result.figures["context_graph_error"] = _error(by_graph().query, context.query, 1e-3)
        result.figures["ranking_error"] = _error(shared(1), wanted, 1e-3)
        for name, told in (("ranking", step.told), ("the context", graph.step.told)):
            if told:
                result.notes.append(f"{name} ran without a CUDA graph: {told}")
        fresh = functools.partial(model.ranker.context, **one)
        sides: dict[str, Callable[[], Any]] = {
            "launched": lambda: ranked(context),
            "shared": lambda: shared(1),
            "many": lambda: shared(many),
            "context": fresh,
            "context_by_graph": by_graph,
            "recomputed": lambda: ranked(fresh()),
            "cascade": lambda: (model.ranker.query(c := fresh()), ranked(c)),
            "two_forwards": lambda: (model.ranker.query(fresh()), ranked(fresh())),
        }
        took = in_turn({name: on.finished(side) for name, side in sides.items()}, repeats, warmup=3)
        _crossing(result, on, context.length, candidates, repeats)
    result.figures |= {
        "ranking_p50": median(took["shared"] * 1e3, "ms"),
        "ranking_requests": median(1 / took["shared"], "requests/s"),
        "ranking_requests_batched": median(many / took["many"], "requests/s"),
        "ranking_graph_against_launches": ratio(took["launched"], took["shared"]),
        "context_graph_against_launches": ratio(took["context"], took["context_by_graph"]),
        "ranking_against_recomputed": ratio(took["recomputed"], took["shared"], target=1.8),
        "cascade_against_two_forwards": ratio(took["two_forwards"], took["cascade"], target=1.8),
    }


def _again(work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """In the place of a CUDA graph where there is none."""
    out = work()

    def again() -> None:
        found = work()
        for old, new in zip(*(x.values() if isinstance(x, dict) else [x] for x in (out, found)), strict=True):
            old.copy_(new)

    return again, out


def _flex(result: Result, on: Device, quick: bool) -> None:
    """The other form of the crossing, FlexAttention: last, for torch may compile it for long, or not at all."""
    candidates, repeats, _ = _sizes(quick)
    model, given, items = _requests(on, quick)
    plan = crossing.Plan.of(np.array([0, candidates]), on.torch)
    with torch.inference_mode():
        context = model.ranker.context(**rank.rows(given, np.arange(1)))

        def ranked(form: Callable[..., Tensor]) -> Tensor:
            return model.ranker.rank(context, items[:candidates], plan, cross=form)

        result.figures["flex_error"] = _error(ranked(crossing.flex), ranked(crossing.fast), 1e-3)
        forms = {"flex": crossing.flex, "kernels": crossing.fast}
        sides = {name: on.finished(functools.partial(ranked, form)) for name, form in forms.items()}
        seconds = in_turn(sides, repeats, warmup=3)
    result.figures["ranking_flex_against_kernels"] = ratio(seconds["kernels"], seconds["flex"])


def _crossing(result: Result, on: Device, tokens: int, rows: int, repeats: int) -> None:
    """The crossing alone against PyTorch's own attention over a context copied to every row."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, 2, 32, generator=draw).to(on.torch) for _ in range(3))
    keys, values = (torch.randn(1, tokens, 2, 32, generator=draw).to(on.torch) for _ in range(2))
    mask = torch.ones(1, tokens, dtype=torch.bool, device=on.torch)
    plan = crossing.Plan.of(np.array([0, rows]), on.torch)
    user = plan.user

    def expanded() -> Tensor:
        mine = torch.cat([keys[user], k[:, None]], 1).transpose(1, 2)
        theirs = torch.cat([values[user], v[:, None]], 1).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], mine, theirs)[:, :, 0]

    def shared() -> Tensor:
        return crossing.fast(q, k, v, keys, values, mask, plan)

    own, theirs = [x.cpu().double() for x in (q, k, v)], [x.cpu().double() for x in (keys, values)]
    wanted = crossing.naive(own[0], own[1], own[2], theirs[0], theirs[1], mask.cpu(), np.array([0, rows]))
    result.figures["crossing_error"] = _error(shared(), wanted, 1e-3)
    result.figures["expanded_error"] = _error(expanded(), wanted, 1e-3)
    # as serving runs them: both recorded, so that neither is measured by its launches
    record = cuda_graph if on.cuda else _again
    sides = {
        name: on.finished(record(form)[0]) for name, form in (("shared", shared), ("expanded", expanded))
    }
    seconds = in_turn(sides, repeats, warmup=3)
    result.figures["crossing_against_expanded"] = ratio(seconds["expanded"], seconds["shared"], target=10.0)


def _training(result: Result, on: Device, quick: bool) -> None:
    """A ranker trained on cached tokens: how long a step takes, and what of it is waiting for tokens."""
    users, per_user, steps = (12, 4, 3) if quick else (512, 16, 30)
    model = _model(on, quick).train()
    schema = RecordSchema(tuple(Group(*group) for group in model.groups))
    rng = np.random.default_rng(2)
    items = torch.from_numpy(rng.integers(0, rank.ITEMS, users * per_user)).to(on.torch)
    label = torch.from_numpy(rng.integers(0, 2, (len(items), len(model.config.actions)))).float().to(on.torch)
    offsets = np.arange(users + 1) * per_user
    few = min(users, 4 if quick else 64)
    with torch.no_grad():
        given = rank.rows(rank.request(model, few, 3), np.arange(users) % few)

    def trained(model: VistaModel, touched: bool) -> Callable[[dict[str, Tensor]], None]:
        table = model.items.weight
        dense = [p for p in model.parameters() if not (touched and p is table)]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, lr=1e-3, fused=True)]
        if touched:
            optimizers.append(torch.optim.SparseAdam([table], lr=1e-3))
        model.items.sparse_gradients = touched

        def step(tokens: dict[str, Tensor]) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            with torch.autocast(on.torch.type, torch.bfloat16, enabled=on.cuda):
                context = model.ranker.context(**{**given, "tokens": tokens})
                logits = model.ranker.rank(context, items, offsets)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), label)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

        return step

    step = trained(model, touched=False)
    others = {"touched": trained(copy.deepcopy(model), touched=True)}
    if on.cuda:  # on the CPU it is a minute of compiling that tells nothing
        compiled = copy.deepcopy(model)
        told = compile_layers(compiled)
        if told is None:
            others["compiled"] = trained(compiled, touched=False)
        else:
            result.notes.append(f"torch.compile: {told}")
    summaries = {name: x.numpy() for name, x in given["tokens"].items()}
    with tempfile.TemporaryDirectory() as folder, stored(Path(folder) / "store", schema, summaries) as store:
        module = SummaryFeature(store, on_device=True).to(on.torch)
        batches = [rng.permutation(users) for _ in range(steps)]
        resident = {name: x.clone() for name, x in module(batches[0]).groups.items()}
        sides = {"step": step, **others}
        done = {name: on.finished(functools.partial(side, resident)) for name, side in sides.items()}
        seconds = in_turn(done, steps, warmup=3)
        alone = seconds.pop("step")

        def epoch() -> None:
            for _, found in SummaryLoader(batches, module, lambda b: b):
                step(found.groups)

        fed = in_turn({"epoch": on.finished(epoch)}, 2 if quick else 5)["epoch"]
        _watched(result, on, epoch)
    result.figures["training_step"] = median(alone * 1e3, "ms")
    for name, theirs in seconds.items():
        result.figures[f"training_{name}_against_plain"] = ratio(alone, theirs)
    result.figures["training_rows"] = median(users * per_user * steps / fed, "rows/s")
    waiting = np.maximum(1 - float(np.median(alone)) * steps / fed, 0)
    result.figures["training_waits_for_tokens"] = median(waiting, "x", target=0.1, at_least=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def _watched(result: Result, on: Device, epoch: Callable[[], None]) -> None:
    """``training_busy``, or why it is not there."""
    try:
        if not on.cuda:
            raise RuntimeError("there is no GPU to watch")
        result.figures["training_busy"] = Figure(_busy(on.finished(epoch)), "x", target=0.9)
    except Exception as error:  # also a machine that lets nobody profile
        result.notes.append(f"training_busy: not measured, {str(error)[:300]}")


def _busy(work: Callable[[], None]) -> float:
    """Share of the time of ``work`` in which the device ran a kernel or a copy, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        work()
        wall = time.perf_counter() - start
    spans = [e.time_range for e in seen.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    return covered([(s.start, s.end) for s in spans]) / 1e6 / wall


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of what the spans cover together."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total


def _loading(result: Result, on: Device, quick: bool) -> None:
    """What one slate costs the host's CPU before it reaches a step."""
    users, mean = (20, 64) if quick else (2_000, 256)
    events = summarize.histories(summarize.lengths_of(users, mean))
    source = Arrays(np.arange(users), events, of=4)
    popular = survey(source, 0.0).popular()
    loader = Loader(source, ExampleConfig(), LoaderConfig(), 32, popular)
    began, slates = time.process_time(), 0
    for batch in itertools.islice(loader, 3 if quick else 40):
        slates += len(batch.cut)
    result.figures["loader_slate"] = Figure((time.process_time() - began) / max(slates, 1) * 1e6, "us of CPU")


def _error(found: Any, wanted: Any, target: float) -> Figure:
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (found, wanted))
    assert a.shape == b.shape and torch.isfinite(a).all()
    largest = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
    return Figure(largest, "x", target=target, at_least=False)


PARTS: dict[str, Callable[[Result, Device, bool], None]] = {
    "ceilings": _ceilings,
    "stage1": _stage1,
    "item_tokens": _item_tokens,
    "features": _features,
    "ranking": _ranking,
    "training": _training,
    "loading": _loading,
    "flex": _flex,
}
"""What is measured, in this order."""
