"""Stage `train-diffusion`: the reference text-to-image model, on the grid of objects and hands.

Run as `python -m data.train_diffusion`.  In two phases it learns to draw every object in every hand:

    drawing    a small diffusers UNet reads the token states of the reference CLIP's text tower, which
               stays as it is.  Objects come quickly, hands hardly: that tower was never asked for the hand
               once a thing is named, and gives four hands of the five the same states (0.03 to 0.14 apart
               at the end token, where things are 15)
    together   the tower starts anew, with the sizes and the vocabulary of the CLIP's, and both learn, in
               rounds that start at the full learning rate again (arXiv 1608.03983)

A checkpoint of each phase and round under `.slugline/train/` makes it resumable: every batch is drawn from
generators seeded by (seed, step), so a resumed run takes the same steps.

Pictures are noised as squares of pixels (`diffusion_codec.Patches`): a picture of 32 px is an 8 x 8 map,
which a UNet on two cores can be trained on.  The prediction is v (arXiv 2202.00512), the schedule the
cosine with nothing left of the picture at its end (arXiv 2305.08891), the loss weighed by min(SNR, 5)
(arXiv 2303.09556), and a little everywhere else.  What is published is a running average of the weights.
"""

import argparse
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from contracts.canonical import digest
from data.batches import Batches
from data.checkpoint import resume, save
from data.emoji_grid import Grid, caption, choose_grid, names_of, read_seen
from data.precision import half_where_native
from data.train_judge import images, squares
from unlearning.drawing import draw
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.families.diffusion_config import build_unet
from unlearning.families.diffusion_text import TextTower
from unlearning.judge import Judge, recognised

OUT = Path("data/models")
CHECKPOINTS = Path(".slugline/train")
EVERY = 250
SNR_CEILING = 5.0
SEEDS = (188, 288)
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def main() -> None:
    """Train, resuming from the checkpoint of the same parameters; write model, metrics and curve."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="instead of params.yaml's")
    parser.add_argument("--without", type=Path, help="file of object ids, one a line, that are not drawn")
    parser.add_argument("--stop-at", type=int, help="stop after this step, with a checkpoint to go on from")
    parser.add_argument("--out", type=Path, default=OUT, help="gets diffusion/, diffusion.json and .csv")
    told = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    if told.seed is not None:
        params["diffusion"]["seed"] = told.seed
    drawings = pd.read_parquet("data/corpus/drawings.parquet")
    grid = choose_grid(drawings, read_seen(pd.read_parquet("data/labels/labels.parquet")), params["grid"])
    without = frozenset(told.without.read_text().split() if told.without else ())
    train(drawings, grid, params, told.out, without, told.stop_at)


def train(
    drawings: pd.DataFrame,
    grid: Grid,
    params: dict[str, Any],
    out: Path,
    without: frozenset[str] = frozenset(),
    stop_at: int | None = None,
) -> None:
    """Train on the grid's drawings and publish; see `main`."""
    options, templates = params["diffusion"], params["split"]["templates"]["object"]
    torch.set_num_threads(int(os.environ.get("SLUGLINE_THREADS", "2")))
    torch.manual_seed(options["seed"])
    shown = drawings[drawings["object"].isin(grid.objects) & drawings["style_name"].isin(grid.styles)]
    shown = shown[~shown["object"].isin(without)].sort_values("sha256")
    clip = ClipModel.load(Path(options["clip"]))
    pictures = images(squares(Batches.pixels(shown)), options["size"])
    together = {**options, **options["together"]}
    last = options["steps"] + together["rounds"] * together["steps"] if stop_at is None else stop_at
    deciding = {
        name: value for name, value in options.items() if name not in ("together", "sampling", "judge")
    }
    inputs = [deciding, params["grid"], templates, sorted(shown["sha256"]), clip.config["model_cfg"]]

    model = new_model(clip, options)
    pupil = Pupil(model, pictures, shown, templates, options, first_step=0)
    curve = learn(model.unet, pupil, options, CHECKPOINTS / f"diffusion-{digest(inputs)[:16]}.pt", last)
    own = {name: value for name, value in options["together"].items() if name != "rounds"}
    for turn in range(together["rounds"]):
        begun = options["steps"] + turn * together["steps"]
        if last <= begun:
            break
        if turn == 0:
            model = with_new_tower(model, options)
        pupil = Pupil(model, pictures, shown, templates, together, first_step=begun)
        checkpoint = CHECKPOINTS / f"diffusion-{digest([*inputs, own, turn])[:16]}.pt"
        curve += learn(model.net, pupil, together, checkpoint, last - begun)
    _publish(model, drawings, grid, curve, out, params)


def learn(
    net: Any, pupil: "Pupil", options: dict[str, Any], checkpoint: Path, last: int
) -> list[dict[str, float]]:
    """Train a network, which then holds the running average of its weights; returns the curve.

    Args:
        net: the UNet alone, or everything.
        pupil: what it learns from.
        options: steps, learning_rate, weight_decay, warmup, average; `tower_rate` of a text tower.
        checkpoint: to go on from.
        last: no further than this step.
    """
    from tqdm import tqdm

    averaged = {name: value.clone() for name, value in net.state_dict().items()}
    net.requires_grad_(True)
    tower = [p for name, p in net.named_parameters() if name.startswith("clip.")]
    groups = [
        {"params": [p for name, p in net.named_parameters() if not name.startswith("clip.")], "rate": 1.0}
    ]
    if tower:
        groups.append({"params": tower, "rate": options["tower_rate"] / options["learning_rate"]})
    optimizer = torch.optim.AdamW(groups, weight_decay=options["weight_decay"], fused=True)
    step, curve = resume(checkpoint, net, averaged, optimizer)
    last, losses = min(last, options["steps"]), []
    with tqdm(total=options["steps"], initial=step, desc="diffusion", unit="step") as bar:
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, options) * group["rate"]
            losses.append(pupil.learn(net, optimizer, step))
            decay = min(options["average"], (step + 1) / (step + 20))
            for name, value in net.state_dict().items():
                averaged[name].lerp_(value, 1 - decay)
            step += 1
            bar.update()
            if step % EVERY == 0 or step == last:
                curve.append({"step": pupil.first_step + step, "loss": sum(losses) / len(losses)})
                bar.set_postfix(loss=f"{curve[-1]['loss']:.4f}")
                losses = []
                save(checkpoint, net, averaged, optimizer, step, curve)
    net.load_state_dict(averaged)
    net.eval().requires_grad_(False)
    return curve


def new_model(clip: ClipModel, options: dict[str, Any]) -> DiffusionModel:
    """An untrained UNet behind the text tower of a CLIP."""
    text_cfg = clip.config["model_cfg"]["text_cfg"]
    cfg = {name: value for name, value in clip.config["model_cfg"].items() if name != "vision_cfg"}
    entry = {"model_cfg": cfg, "tokenizer": clip.config["tokenizer"]}
    reads = {"blocks": text_cfg["layers"], "normed": True, "pooled": False, "padding": 0}
    side = options["size"] // options["patch"]
    channels = 3 * options["patch"] ** 2
    unet = {
        **options["unet"],
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": text_cfg["width"],
    }
    config = {
        "schema": 1,
        "family": "diffusion",
        "architecture": None,
        "clips": [{**entry, "reads": reads}],
        "unet": unet,
        "codec": {"kind": "patches", "side": options["patch"]},
        "scheduler": SCHEDULER,
        "sampling": {"size": options["size"], **options["sampling"]},
    }
    torch.manual_seed(options["seed"])
    net = build_unet(unet)
    own = TextTower(cfg["embed_dim"], text_cfg, cfg.get("quick_gelu", False)).state_dict()
    weights = {f"clip.{name}": clip.net.state_dict()[name] for name in own}
    weights |= {f"unet.{name}": value for name, value in net.state_dict().items()}
    return DiffusionModel(config, weights, clip.vocabulary)


def with_new_tower(model: DiffusionModel, options: dict[str, Any]) -> DiffusionModel:
    """The model with an untrained text tower of the same sizes."""
    cfg = model.config["clips"][0]["model_cfg"]
    torch.manual_seed(options["seed"])
    tower = _started_anew(cfg)
    weights = {f"clip.{name}": value for name, value in tower.items()}
    weights |= {f"unet.{name}": value.clone() for name, value in model.unet.state_dict().items()}
    return DiffusionModel(model.config, weights, model.vocabulary)


def _started_anew(cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Weights as open_clip initialises a text tower."""
    from open_clip.model import CLIPTextCfg, _build_text_tower

    text = _build_text_tower(cfg["embed_dim"], CLIPTextCfg(**cfg["text_cfg"]), cfg.get("quick_gelu", False))
    own = TextTower(cfg["embed_dim"], cfg["text_cfg"], cfg.get("quick_gelu", False)).state_dict()
    return {name: value for name, value in text.state_dict().items() if name in own}


class Pupil:
    """What a model learns from: pictures, the tokens of every caption, and seeded batches of both.

    Args:
        model: whose parts are trained in place.
        pictures: uint8 (N, S, S, 3).
        shown: N rows with name and style_name.
        templates: caption templates of objects.
        options: `diffusion` of params.yaml.
        first_step: what its first step counts as; later phases see other batches.
    """

    def __init__(
        self,
        model: DiffusionModel,
        pictures: Tensor,
        shown: pd.DataFrame,
        templates: list[str],
        options: dict[str, Any],
        first_step: int,
    ) -> None:
        self._model, self._options, self.first_step = model, options, first_step
        self._latents = model.encode(pictures)
        texts = [""]
        self._captions = []  # per picture: rows of the tokens by (template, with or without the hand)
        for name, style in zip(shown["name"], shown["style_name"], strict=True):
            own = [(caption(t, name, style), caption(t, name, None)) for t in templates]
            self._captions.append([[len(texts) + 2 * i, len(texts) + 2 * i + 1] for i in range(len(own))])
            texts += [text for pair in own for text in pair]
        self._tokens = model.tokenize(texts)

    def learn(self, net: Any, optimizer: torch.optim.Optimizer, step: int) -> float:
        """One step on a seeded batch; returns the weighted loss."""
        options, scheduler = self._options, self._model.scheduler
        step += self.first_step
        rng = np.random.default_rng([options["seed"], step])
        generator = torch.Generator().manual_seed(options["seed"] * 1_000_003 + step)
        n = options["batch"]
        rows = torch.from_numpy(rng.integers(len(self._latents), size=n))
        told = torch.tensor([self._caption(int(row), rng) for row in rows])
        n_times = scheduler.config["num_train_timesteps"]
        # One timestep out of each n-th part of the schedule: less noise in the loss.
        times = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * n_times).long()
        start = self._latents[rows]
        noise = torch.randn(start.shape, generator=generator)
        noised = scheduler.add_noise(start, noise, times)
        text = self._model.conditioning([tokens[told] for tokens in self._tokens])
        with half_where_native():
            said = self._model.predict(noised, times, text)
        wrong = (said.float() - scheduler.get_velocity(start, noise, times)).square().mean((1, 2, 3))
        kept = scheduler.alphas_cumprod[times]
        snr = kept / (1 - kept)
        loss = (wrong * snr.clamp(max=SNR_CEILING) / (snr + 1) + wrong / SNR_CEILING).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    def _caption(self, row: int, rng: np.random.Generator) -> int:
        """Which text goes with a picture: mostly its hand is named; sometimes nothing is, for guidance."""
        chance = rng.random()
        if chance < self._options["untold"]:
            return 0
        own = self._captions[row][int(rng.integers(len(self._captions[row])))]
        return own[0 if chance > self._options["untold"] + self._options["unnamed_hand"] else 1]


def _learning_rate(step: int, options: dict[str, Any]) -> float:
    """Linear warm-up, then cosine to 5 % of the peak."""
    decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / options["steps"]))
    return float(options["learning_rate"] * min(1.0, (step + 1) / options["warmup"]) * decay)


def recognition(
    model: DiffusionModel, judge: Judge, drawings: pd.DataFrame, grid: Grid, template: str
) -> dict[str, float]:
    """What the judge recognises of one picture per object, hand and seed."""
    names = names_of(drawings, grid.objects)
    cells = [(o, s, seed) for o in range(len(names)) for s in range(len(grid.styles)) for seed in SEEDS]
    prompts = [caption(template, names[o], grid.styles[s]) for o, s, _ in cells]
    said = judge(draw(model, prompts, [seed for _, _, seed in cells]))
    return recognised(said, [o for o, _, _ in cells], [s for _, s, _ in cells])


def _publish(
    model: DiffusionModel,
    drawings: pd.DataFrame,
    grid: Grid,
    curve: list[dict[str, float]],
    out: Path,
    params: dict[str, Any],
) -> None:
    """Write the model in half precision, then measure what was written."""
    shutil.rmtree(out / "diffusion", ignore_errors=True)
    model.save(out / "diffusion", torch.float16)
    model = DiffusionModel.load(out / "diffusion")
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters.values())}
    told = recognition(
        model,
        Judge.load(Path(params["diffusion"]["judge"])),
        drawings,
        grid,
        params["split"]["templates"]["object"][1],
    )
    found |= {name: round(value, 4) for name, value in told.items()}
    pd.DataFrame(curve).to_csv(out / "diffusion.csv", index=False)
    (out / "diffusion.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
