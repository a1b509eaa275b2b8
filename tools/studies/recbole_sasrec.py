"""RecBole's own SASRec on a leave-one-out split, within a budget of CPU seconds. A program, not a module of ours.

    PYTHON recbole_sasrec.py FOLDER

It runs under an interpreter that has RecBole 1.2.1, which this product neither needs nor installs, and so imports
nothing of ours. FOLDER holds, and gets:

    options.json        seconds, length, seed, settings (of RecBole, by name)
    split/split.inter   user_id, item_id, timestamp; timestamps of a user differ, so that the order is told
    last.pth, best.pth, curve.json      where it stands after each epoch; a run that was stopped goes on from there
    scores.npz          users, items: int64 ids; scores float32 [users, items]: of the last event of each user
    report.json         epochs, CPU seconds, best validation, RecBole's own metrics

Model, data loading, training and evaluation are RecBole's; names that newer NumPy and PyTorch dropped are given back
before it is imported, and two things that only cost it time are mended: importing RecBole's sequential models leaves
autograd's anomaly detection on (a third of a step; one model among them asks for it), and its GELU is written out in
five passes instead of calling the one kernel that computes the same.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

for _name, _type in (
    ("float_", np.float64),
    ("complex_", np.complex128),
    ("unicode_", np.str_),
    ("bool8", np.bool_),
):
    if not hasattr(np, _name):
        setattr(np, _name, _type)
_load = torch.load
# RecBole's checkpoints hold its configuration object, which the newer default refuses; they are its own files.
torch.load = lambda *args, **kwargs: _load(*args, **{"weights_only": False, **kwargs})

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.layers import FeedForward  # noqa: E402
from recbole.model.sequential_recommender import SASRec  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402

torch.autograd.set_detect_anomaly(False)
FeedForward.gelu = lambda self, x: torch.nn.functional.gelu(x)


class BudgetSpent(Exception):
    """The next epoch would not fit any more."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    options = json.loads((folder / "options.json").read_text())
    config = Config(model="SASRec", dataset="split", config_dict=_settings(folder, options))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    model = SASRec(config, train.dataset).to(config["device"])
    trainer = Trainer(config, model)
    trainer.saved_model_file = str(folder / "best.pth")
    spent, curve = 0.0, []
    if (folder / "last.pth").exists():
        trainer.resume_checkpoint(str(folder / "last.pth"))
        curve = json.loads((folder / "curve.json").read_text())
        spent = curve[-1][0]
    began = time.process_time() - spent

    def after_epoch(epoch: int, score: float) -> None:
        used = time.process_time() - began
        curve.append((round(used, 1), score))
        trainer._save_checkpoint(epoch, saved_model_file=str(folder / "last.pth"), verbose=False)
        (folder / "curve.json").write_text(json.dumps(curve))
        print(f"epoch {epoch}: {used:.0f} CPU seconds, validation {score:.4f}", file=sys.stderr, flush=True)
        if used * (epoch + 2) / (epoch + 1) > options["seconds"]:
            raise BudgetSpent

    stopped = "early"
    try:
        if spent * (1 + 1 / max(len(curve), 1)) > options["seconds"]:
            raise BudgetSpent
        trainer.fit(train, valid, verbose=False, saved=True, show_progress=False, callback_fn=after_epoch)
    except BudgetSpent:
        stopped = "budget"
    used = time.process_time() - began
    own = trainer.evaluate(test, load_best_model=True, show_progress=False)

    model.eval()
    rows, scores = [], []
    with torch.no_grad():
        for interaction, _, _, _ in test:
            rows.append(interaction[dataset.uid_field].numpy())
            scores.append(model.full_sort_predict(interaction.to(config["device"])).cpu().numpy()[:, 1:])
    names = dataset.field2id_token
    np.savez(
        folder / "scores.npz",
        users=names[dataset.uid_field][np.concatenate(rows)].astype(np.int64),
        items=names[dataset.iid_field][1:].astype(np.int64),
        scores=np.concatenate(scores).astype(np.float32),
    )
    report = {
        "epochs": len(curve), "cpu_seconds": used, "stopped": stopped, "curve": curve,
        "best_validation": trainer.best_valid_score, "own_metrics": {k: float(v) for k, v in own.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))


def _settings(folder: Path, options: dict) -> dict:
    """The protocol; everything else is RecBole's default for SASRec unless ``settings`` names it."""
    return {
        "data_path": str(folder), "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": options["length"], "train_neg_sample_args": None, "loss_type": "CE",
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["Hit", "NDCG"], "topk": [10], "valid_metric": "NDCG@10", "epochs": 10_000,
        "seed": options["seed"], "use_gpu": False, "show_progress": False, "state": "ERROR",
        **options["settings"],
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
