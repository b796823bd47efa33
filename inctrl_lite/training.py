"""Learning to compare: the training loop and the evaluation, on frozen features.

Only the adapter and the head are learned, so a step is cheap: read the stored features of the episodes,
score the queries, take a step down the focal loss. Several processes (`accelerate launch`,
`accelerate.notebook_launcher`) share each batch and each evaluation.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from inctrl_lite.backbone import Backbone, ImageFeatures
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import Episode, draw_prompts, sample_batch
from inctrl_lite.device import join_team
from inctrl_lite.errors import InctrlError
from inctrl_lite.features import FeatureStore, ViewStore, encode_items, encode_views
from inctrl_lite.files import write_text, write_whole
from inctrl_lite.losses import focal_loss
from inctrl_lite.metrics import image_metrics
from inctrl_lite.model import InCTRL, NormalPrompt, Scores, prompt_spread
from inctrl_lite.prompts import text_prototypes

CHECKPOINT, HISTORY = "checkpoint.pt", "history.jsonl"
Record = dict[str, int | float]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the public code's, but for the shots (2 there).

    Attributes:
        head: "paper" (exact) or "lite" (for small backbones).
        shots: K normal prompts for every query; testing may use another K.
        epochs: how many times `steps_per_epoch` steps are taken. An epoch is no pass over the data.
        steps_per_epoch: steps between two checkpoints.
        batch_size: queries in a step, half normal, half anomalous.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        gamma: focusing parameter of the focal loss.
        double_sigmoid: see `focal_loss`; None: as the head wants it.
        seed: of initial weights and episodes.
    """

    head: str = "paper"
    shots: int = 4
    epochs: int = 10
    steps_per_epoch: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gamma: float = 2.0
    double_sigmoid: bool | None = None
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def train(
    categories: Sequence[Category],
    backbone: Backbone,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    store: FeatureStore | None = None,
    resume: bool = True,
    progress: bool = True,
) -> tuple[InCTRL, list[Record]]:
    """Train a model on the categories of an auxiliary data set.

    The model is the one after the last step, whatever its loss was. The public code's author chose an
    epoch by its test scores, with prompts drawn from the test images; a choice like that flatters.

    With `out`, a checkpoint is written after every epoch, and the same call goes on from there: after a
    kill at any moment, the result is what an uninterrupted run gives (on the CPU, bit by bit). Ctrl-C
    finishes the step and writes a checkpoint first. The folder then holds the model (`InCTRL.from_pretrained`
    reads it), `checkpoint.pt` and `history.jsonl`. More `epochs` may be asked of a finished run.

    With several processes, each computes its share of every batch and gradients are averaged, as if by one
    process; only the paper head's BatchNorm then normalises over a share, and the first process's running
    statistics are kept.

    Args:
        categories: what to learn from; test splits give the anomalous queries.
        backbone: what to look with; frozen, moved to the device.
        config: how to train; None: `TrainConfig()`.
        out: folder for the results; None keeps nothing.
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        store: where features are kept; None: the cache folder.
        resume: go on with what is in `out`; False starts over.
        progress: show progress bars.

    Returns:
        The model in eval mode, and one record a step: "step" (from 0), "loss" and its two terms "final" and
        "image", "gradient" (norm), "lr", "seconds".

    Raises:
        InctrlError: unfit data or config, another run in `out`, an `out` that cannot be written, or a loss
            that is no number any more.
    """
    config = config or TrainConfig()
    team = join_team(device)
    if config.batch_size % (2 * team.size):
        raise InctrlError(
            f"batch size {config.batch_size} cannot be shared equally, half normal and half anomalous, by "
            f"{team.size} process(es): choose a multiple of {2 * team.size}"
        )
    backbone.to(team.device)
    store = store or FeatureStore(backbone)
    model = new_model(backbone, config).to(team.device)
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    run = describe_run(categories, store, config)
    history: list[Record] = []

    def save() -> None:
        if out is not None and team.is_main:
            save_checkpoint(Path(out), run, model, optimiser, history)

    if out is not None and resume and (Path(out) / CHECKPOINT).exists():
        history += load_checkpoint(Path(out), run, config.steps, model, optimiser)
    else:
        save()  # learn now, not after an epoch, whether the folder can be written
    team.wait()

    if len(history) < config.steps:
        items = [item for category in categories for item in (*category.train, *category.test)]
        store.encode(items[team.rank :: team.size], progress=progress and team.is_main)
        team.wait()
        texts = {name: text_prototypes(backbone, name) for name in {c.name for c in categories}}
    double_sigmoid = model.head.focal_on_logits if config.double_sigmoid is None else config.double_sigmoid
    loss_of = partial(focal_loss, gamma=config.gamma, double_sigmoid=double_sigmoid)

    model.train()
    bar = tqdm(
        range(len(history), config.steps),
        initial=len(history),
        total=config.steps,
        desc="training",
        unit="step",
        disable=not (progress and team.is_main),
    )
    with deferred_interrupt() as interrupted, bar:
        for step in bar:
            began = time.perf_counter()
            episodes = sample_batch(
                categories, step, batch_size=config.batch_size, shots=config.shots, seed=config.seed
            )
            query, prompt, text, labels = load_episodes(
                episodes[team.rank :: team.size], store, texts, spread=model.head.uses_spread
            )
            scores = model(query, prompt, text)
            final, image = loss_of(scores.final, labels), loss_of(scores.image, labels)

            optimiser.zero_grad()
            (final + image).backward()
            team.average_gradients(model)
            norm = clip_grad_norm_(model.parameters(), math.inf)  # measures, clips nothing
            stop = torch.tensor(float(interrupted()), device=team.device)  # together or not at all
            final, image, stop = team.mean(torch.stack([final.detach(), image.detach(), stop])).tolist()
            if not math.isfinite(final + image + norm.item()):
                raise InctrlError(not_a_number(step, final + image, norm.item(), config, out))
            optimiser.step()

            history.append(
                {"step": step, "loss": final + image, "final": final, "image": image}
                | {
                    "gradient": norm.item(),
                    "lr": config.learning_rate,
                    "seconds": time.perf_counter() - began,
                }
            )
            bar.set_postfix(loss=f"{final + image:.3f}", refresh=False)
            if stop or (step + 1) % config.steps_per_epoch == 0:
                save()
            if stop:
                message = f"interrupted after {step + 1} of {config.steps} steps"
                if out is not None:
                    message += f". Saved in {out}; the same command or call goes on from there"
                if team.is_main:
                    tqdm.write(message, file=sys.stderr)
                raise KeyboardInterrupt(message)

    model.eval()
    if out is not None and team.is_main:
        model.save_pretrained(out)
    team.wait()
    return model, history


# --- the parts of a step -----------------------------------------------------------------------------


def new_model(backbone: Backbone, config: TrainConfig) -> InCTRL:
    """An untrained model for a backbone, with the initial weights of `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return InCTRL(backbone.embed_dim, backbone.num_patches, config.head, backbone.arguments)


def load_episodes(
    episodes: Sequence[Episode], store: FeatureStore, texts: Mapping[str, Tensor], spread: bool = True
) -> tuple[ImageFeatures, NormalPrompt, Float[Tensor, "B 2 D"], Float[Tensor, " B"]]:
    """What the model takes, and the labels. Every image of the batch is read once."""
    items = dict.fromkeys(item for e in episodes for item in (e.query, *e.prompt))
    row = {item: i for i, item in enumerate(items)}
    features = store.load(list(items))
    query = features[[row[e.query] for e in episodes]]
    prompt = gather_prompts(features, [[row[item] for item in e.prompt] for e in episodes], spread)
    text = torch.stack([texts[e.category.name] for e in episodes])
    labels = torch.tensor([float(e.query.label) for e in episodes], device=text.device)
    return query, prompt, text, labels


def gather_prompts(features: ImageFeatures, rows: list[list[int]], spread: bool) -> NormalPrompt:
    """One prompt per query, from rows of a batch's features.

    One copy, with the block as the outermost axis in memory: residual maps then take each block as it
    lies, without another.
    """
    index = torch.tensor(rows)
    patches = features.patches.transpose(0, 1)[:, index].permute(1, 2, 0, 3, 4)
    if spread:
        spreads = torch.stack([prompt_spread(one, features.grid) for one in patches])
    else:
        spreads = patches.new_full((len(rows), patches.shape[-2], 2), float("nan"))
    return NormalPrompt(features.cls[index], patches, features.places[index], spreads)


def not_a_number(step: int, loss: float, norm: float, config: TrainConfig, out: str | Path | None) -> str:
    """What to say when training has blown up."""
    kept = "" if out is None else f" The last good checkpoint is in {out}."
    return (
        f"training failed at step {step}: the loss is {loss} and its gradient's norm {norm}.{kept} Try a "
        f"learning rate below {config.learning_rate:g}, in another folder"
    )


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C, which could strike in the middle of an update; gives a function that tells of it.

    A second Ctrl-C acts at once. Only the main thread may do this: elsewhere nothing is held back.
    """
    asked = False

    def ask(signum, frame) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


# --- checkpoints -------------------------------------------------------------------------------------


def describe_run(categories: Sequence[Category], store: FeatureStore, config: TrainConfig) -> dict:
    """All that the outcome depends on, but for the number of epochs."""
    digest = blake2b(digest_size=8)
    for category in categories:
        digest.update(repr((category.dataset, category.name)).encode())
        for item in (*category.train, *category.test):
            digest.update(repr((item.name, item.label)).encode())
    settings = {key: value for key, value in asdict(config).items() if key != "epochs"}
    return settings | {"images": digest.hexdigest(), "features": "/".join(store.folder.parts[-2:])}


def save_checkpoint(
    out: Path, run: dict, model: InCTRL, optimiser: torch.optim.Optimizer, history: list[Record]
) -> None:
    """Write all that going on needs, in one file, whole; and the history for people to read."""
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise InctrlError(f"training failed after {len(history)} steps: weights are no numbers any more")
    state = {
        "run": run,
        "history": history,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    buffer = BytesIO()
    torch.save(state, buffer)
    write_whole(out / CHECKPOINT, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    write_text(out / HISTORY, "".join(json.dumps(record) + "\n" for record in history))


def load_checkpoint(
    out: Path, run: dict, steps: int, model: InCTRL, optimiser: torch.optim.Optimizer
) -> list[Record]:
    """Put model and optimiser back where they were; returns the history.

    Raises:
        InctrlError: the file cannot be read, or is of a run with other settings (named).
    """
    path = out / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, history = state["run"], state["history"]
    except Exception as error:  # unpickling and zip errors of many kinds
        raise InctrlError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or no checkpoint of this "
            "package. Delete it, or start over with resume=False"
        ) from error
    if not history:  # nothing is lost by starting over, perhaps with better settings
        return []
    changed = [f"{key} {saved.get(key)!r}, now {run[key]!r}" for key in run if saved.get(key) != run[key]]
    if changed:
        raise InctrlError(
            f"{out} holds a run with other settings ({'; '.join(changed)}). Choose another folder or the "
            f"same settings, or delete {path} to start over (resume=False)"
        )
    if len(history) > steps:
        raise InctrlError(
            f"{out} holds a run of {len(history)} steps already, more than the {steps} asked for. Choose "
            "another folder, or more epochs"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return history


# --- evaluation --------------------------------------------------------------------------------------


@torch.no_grad()
def score_items(
    model: InCTRL,
    backbone: Backbone,
    category: str,
    items: Sequence[Item],
    prompt: Sequence[Item],
    *,
    store: FeatureStore | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Scores:
    """Scores of images against one set of normal prompts: in the order of `items`, on the CPU.

    Several processes share the work by whole batches, so that their number changes no score, not even in
    its last bit; all of them get all scores.

    Args:
        model: put into eval mode.
        backbone: what to look with, on the model's device.
        category: what the images show, in words.
        items: the queries.
        prompt: the K normal prompts.
        store: where to keep features for the next time; None encodes and forgets, in constant memory.
        batch_size: images at a time.
        progress: show a progress bar.

    Raises:
        InctrlError: an image cannot be read (named).
    """
    team = join_team(backbone.device)
    model.eval()
    encode = store.load if store else partial(encode_items, backbone)
    views = None
    if model.head.uses_views:
        views = ViewStore(store).load(prompt) if store else encode_views(backbone, prompt)
    normal, text = NormalPrompt.of(encode(prompt), views), text_prototypes(backbone, category)
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    own = range(team.rank, len(batches), team.size)
    scored = {
        i: model(encode(batches[i]), normal, text).map(Tensor.cpu)
        for i in tqdm(own, desc=category, unit="batch", leave=False, disable=not (progress and team.is_main))
    }
    gathered = {i: part for share in team.gather(scored) for i, part in share.items()}
    return Scores.cat([gathered[i] for i in range(len(batches))])


def evaluate(
    model: InCTRL,
    backbone: Backbone,
    categories: Sequence[Category],
    *,
    shots: int = 4,
    seed: int = 0,
    store: FeatureStore | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """AUROC and AP of every category's test split, with the K normal prompts that `seed` draws.

    Several processes share every category, each on its own device; all of them get the whole table.

    Args:
        model: the trained part.
        backbone: what to look with.
        categories: what to test on.
        shots: K.
        seed: of the prompt draw (`draw_prompts`).
        store: see `score_items`.
        batch_size: images at a time.
        progress: show progress bars.

    Returns:
        One row a category: dataset, category, domain, shots, seed, auroc, ap, n_normal, n_anomalous.

    Raises:
        InctrlError: an image cannot be read, or a category has fewer normal images than `shots` (named).
    """
    team = join_team(backbone.device)
    model.to(team.device)
    backbone.to(team.device)
    rows = []
    for category in tqdm(categories, desc="evaluating", disable=not (progress and team.is_main)):
        prompt = draw_prompts(category, shots, seed)
        scores = score_items(
            model,
            backbone,
            category.name,
            category.test,
            prompt,
            store=store,
            batch_size=batch_size,
            progress=progress,
        )
        labels = [item.label for item in category.test]
        metrics = image_metrics(labels, scores.final.tolist())
        rows.append(
            {"dataset": category.dataset, "category": category.name, "domain": category.domain}
            | {"shots": shots, "seed": seed, "auroc": metrics["auroc"], "ap": metrics["ap"]}
            | {"n_normal": labels.count(0), "n_anomalous": labels.count(1)}
        )
    return pd.DataFrame(rows)
