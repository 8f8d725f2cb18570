"""The words that figures are named by: what a family may measure, a gate bound and a certificate hold.

    rate    <prefix>.<metric>.before|after    share of items of which something holds
    drop    <prefix>.<metric>                 before - after of a rate, on the same items
    level   <prefix>.<metric>                 mean of a quality in a unit of its own, before and after

Certificates accept no other word, so that no name of a person can stand where a figure's name belongs.
A family that measures something new adds its word here, and no gate, flow or verifier changes.

`earlier.<metric>.after` is, of all earlier requests that the candidate must carry on, the rate of the one
that is known best: forget.<metric>.after of its own items.
"""

from collections.abc import Mapping

# group of an outcome -> (prefix of its metrics, name of its image -> text accuracy)
PREFIX: Mapping[str, tuple[str, str]] = {
    "forget": ("forget", "fa"),
    "retain": ("retain", "ta"),
    "neighbour": ("neighbours", "ta"),
    "control": ("control", "fa"),
    "cross": ("cross", "ta"),
}

# Questions that are answered by the rank of the right answer; each is a rate at every depth.
RANKED = ("i2t", "t2i")
DEPTHS = (1, 5)

# Questions that are answered by yes or no; each is a rate.
HITS: Mapping[str, str] = {
    "restored": "comes out at least 1 dB nearer to the clean image than it went in",
    "harmed": "comes out at least 1 dB further from the clean image than it went in",
    "named": "the answer about the picture contains its name",
    "reworded": "the answer to another wording of the question contains its name",
    "affirmed": "asked whether it is that, the answer is yes",
    "colour": "the answer to the question for its colour is right",
    "count": "the answer to the question how many there are is right",
    "recognised": "shows what its prompt names: an independent judge names that first",
}

# Qualities of an output, and their units; the more, the better.  Likeness of drawn pictures to drawings is
# minus their kernel distance (KID) on the features of the judge.
LEVELS: Mapping[str, str] = {"psnr": "dB", "ssim": "", "likeness": ""}

# How tables and sentences call them.
SHORT: Mapping[str, str] = {
    "restored": "restored",
    "harmed": "harmed",
    "named": "named",
    "reworded": "named, asked otherwise",
    "affirmed": "affirmed",
    "colour": "colour told",
    "count": "number told",
    "recognised": "recognised",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "likeness": "likeness",
}

# What the group `cross` is measured on, where it is not the other axis.
CROSS: Mapping[str, str] = {
    "psnr": "clean images",
    "ssim": "clean images",
    "colour": "what is kept",
    "count": "what is kept",
}

# Every neighbour's own figures, of which the worst one is looked for: a rate and its drop, or a level.
OF_EACH_NEIGHBOUR = ("ta1", "restored", "named", "recognised")

# What a run is told by in one line: the first of these that it has.
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "forget": ("fa1", "restored", "named", "recognised"),
    "retain": ("ta1", "restored", "named", "recognised"),
}

# What `StepTrial.forget_score` is, by the headline of what is forgotten.
SCORES: Mapping[str, str] = {
    "fa1": "Cosine",
    "restored": "Gain, dB",
    "named": "Likelihood",
    "recognised": "Margin",
}


def metrics_of(group: str, question: str) -> dict[str, int]:
    """Metric name without prefix -> up to which rank an answer counts."""
    if question in HITS:
        return {question: 1}
    word = PREFIX[group][1] if question == "i2t" else question
    return {f"{word}{depth}": depth for depth in DEPTHS}
