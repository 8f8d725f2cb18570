"""What bench.limit prints, on a tiny model: sizes and ratios that belong together, and a model left alone."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

import bench.hotspots
from bench import limit
from bench.footprint import growth
from bench.hotspots import hotspots
from bench.meter import Meter
from bench.passes import forget_pass, retain_pass, search_pass
from bench.work import known_retain
from contracts.errors import InputError
from contracts.values import Method
from tests.unlearning.conftest import (  # the fixtures `make_model` and `vocabulary` among them
    TEXT,
    Task,
    make_model,  # noqa: F401
    vocabulary,  # noqa: F401
)
from unlearning import ClipModel, UnlearnInputs, methods
from unlearning.attempts import restored

PRECONDITIONED = Method(
    name="slug-preconditioned", forget_at=2, micro_batch=16, retain_batch=64, search_steps=2, towers=("text",)
)


@pytest.fixture(scope="module")
def tiny(make_model: Callable[..., ClipModel]) -> ClipModel:  # noqa: F811
    return make_model("vit")


@pytest.fixture(scope="module")
def inputs() -> UnlearnInputs:
    return Task(PRECONDITIONED).inputs(3)


SLUG = Method(forget_at=2, search_steps=3, micro_batch=16)
ALSO_MEASURED = limit._own  # which the fixtures below replace
OWN = {"full_front": SLUG, "preconditioned": PRECONDITIONED}


@pytest.fixture(scope="module")
def tiny_work(tiny: ClipModel, inputs: UnlearnInputs) -> Iterator[list[limit.Setting]]:
    """Whatever is measured is the tiny model; the settings that were asked for, in order."""
    asked: list[limit.Setting] = []

    def work(
        name: str, setting: limit.Setting, seed: int, device: str
    ) -> tuple[ClipModel, UnlearnInputs, Method]:
        asked.append(setting)
        if name == "broken":
            raise RuntimeError("out of memory\nand a trace")
        if name == "interrupted":
            raise KeyboardInterrupt
        return tiny, inputs, PRECONDITIONED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "work", work)
        patch.setattr(limit, "_own", lambda setting, micro_batch: OWN)
        yield asked


def run(*arguments: str) -> tuple[dict[str, Any], int]:
    """What the command prints as JSON, and its exit status."""
    status = 0
    with redirect_stdout(io.StringIO()) as out:
        try:
            limit.main([*arguments, "--json"])
        except SystemExit as ended:
            status = int(ended.code or 0)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found, status


@pytest.fixture(scope="module")
def printed(tiny_work: list[limit.Setting]) -> dict[str, Any]:
    """What `python -m bench.limit --json --utilisation` prints if ViT-B-32 is the tiny model."""
    found, status = run("--models", "ViT-B-32", "--repeats", "2", "--forget", "6", "--utilisation")
    own = limit.FULL_SIZE["cpu"]["ViT-B-32"]
    assert tiny_work.pop() == replace(own, sizes=replace(own.sizes, forget=6), rounds=2)
    assert status == 0
    return found


def test_the_ratios_are_medians_of_the_rounds_beside_them(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    assert len(row["rounds"]) == 2
    for taken in row["rounds"]:
        assert taken["limit"] == pytest.approx(taken["forget"] + taken["retain"] + taken["search"])
        assert all(value > 0 for value in taken.values())
    assert row["ratio"] == pytest.approx(median(t["default"] / t["limit"] for t in row["rounds"]))
    assert row["ratio_full_front"] == pytest.approx(
        median(t["full_front"] / t["limit"] for t in row["rounds"])
    )
    assert row["ratio_cached"] == pytest.approx(
        median(t["cached"] / (t["forget"] + t["search"]) for t in row["rounds"])
    )
    assert row["ratio_default_cached"] == pytest.approx(
        median(t["default"] / (t["forget"] + t["search"]) for t in row["rounds"])
    )
    assert printed["ratio"] is None, "the headline is the reference model's, which did not run"
    assert row["sizes"]["classes"] == 8


def test_a_row_has_its_parts_in_seconds_and_its_memory(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    parts = {"forget", "retain", "search", "default", "full_front", "preconditioned", "cached", "limit"}
    assert row["seconds"].keys() == parts
    assert row["peak_memory_mib"] > 0


def test_without_options_the_reference_model_and_both_full_sizes_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = ("ratio", "ratio_full_front", "ratio_preconditioned", "ratio_cached", "ratio_default_cached")
    asked: dict[str, limit.Setting] = {}

    def measured(name: str, setting: limit.Setting, *others: Any) -> dict[str, Any]:
        asked[name] = setting
        return {**dict.fromkeys(heads, float(len(asked))), "seconds": {"limit": 1.0}}

    monkeypatch.setattr(limit, "limit", measured)
    found, status = run()
    full = limit.FULL_SIZE["cpu"]
    assert asked == {"reference": limit.REAL, "ViT-B-32": full["ViT-B-32"], "ViT-L-14": full["ViT-L-14"]}
    assert list(found["models"]) == list(asked)
    assert (found["ratio"], status) == (1.0, 0), "the headline is the reference model's"


def test_a_slow_round_moves_no_ratio() -> None:
    # A ratio of sums would: the machine was twice as slow while the second round ran.
    parts = {"forget": 1.0, "retain": 2.0, "search": 1.0}
    quick = {**parts, "default": 2.0, "full_front": 8.0, "preconditioned": 6.0, "cached": 1.0}
    found = limit.ratios([quick, {job: 2 * taken for job, taken in quick.items()}, quick])
    assert (found["ratio"], found["ratio_full_front"]) == (0.5, 2.0)
    assert (found["ratio_preconditioned"], found["ratio_cached"]) == (1.5, 0.5)
    assert found["ratio_default_cached"] == 1.0
    assert found["seconds"]["limit"] == 4.0


def test_rounds_run_there_and_back_again(tiny: ClipModel) -> None:
    ran: list[str] = []
    jobs = {job: (lambda job=job: ran.append(job)) for job in ("a", "b", "c")}
    limit.measure_rounds(tiny, jobs, 3, Meter(), lambda *told: None)
    assert "".join(ran) == "abccbaabc"


def test_what_failed_and_what_was_not_reached_do_not_lose_what_is_done(
    tiny_work: list[limit.Setting],
) -> None:
    found, status = run("--models", "broken,ViT-L-14,interrupted,ViT-B-32", "--repeats", "1")
    assert found["models"]["broken"] == {"error": {"class": "RuntimeError", "message": "out of memory"}}
    assert found["models"]["ViT-L-14"]["ratio"] > 0
    assert set(found["models"]) == {"broken", "ViT-L-14"}
    assert (found["interrupted"], status) == (True, 1)


def test_operations_are_counted_and_set_against_the_machine(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    found, seconds = row["utilisation"], row["seconds"]
    assert found["gemm_tflop_per_s"] > 0
    assert found["peak_tflop_per_s"] is None, "no data sheet of this CPU is known"
    forget = found["forget"]
    assert forget["tflop_per_s"] == pytest.approx(forget["tflop"] / seconds["forget"])
    assert forget["of_gemm"] == pytest.approx(forget["tflop_per_s"] / found["gemm_tflop_per_s"])
    assert found["preprocess"]["tflop"] < forget["tflop"] < found["full_front"]["tflop"]


def test_a_linear_pass_takes_the_operations_of_its_items(tiny: ClipModel, inputs: UnlearnInputs) -> None:
    # Fused attention hides its products from the counter: then text would count too little.
    tokens = tiny.tokenize(inputs.retain_captions[:2])
    text = TEXT["width"], TEXT["context_length"], TEXT["layers"]
    width, length, layers = text
    block = 2 * length * (12 * width**2) + 2 * 2 * length**2 * width
    expected = 2 * (layers * block + 2 * width * 24)
    with torch.no_grad():
        assert Meter().flop(lambda: tiny.text_features(tokens)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("job", [forget_pass, retain_pass, search_pass])
def test_the_limit_holds_no_padding(
    tiny: ClipModel, inputs: UnlearnInputs, job: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A method can leave padding out: a limit that held it would flatter every ratio.
    short = replace(
        inputs,
        class_names=tuple(str(n) for n in range(len(inputs.class_names))),
        forget_captions=("red",) * len(inputs.forget_captions),
        retain_captions=("red", "blue") * (len(inputs.retain_captions) // 2),
    )
    lengths: set[int] = set()
    forward = tiny.net.transformer.forward

    def seen(x: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        lengths.add(x.shape[1])
        result: torch.Tensor = forward(x, *others, **options)
        return result

    monkeypatch.setattr(tiny.net.transformer, "forward", seen)
    job(tiny, short, SLUG, lambda *told: None)
    assert lengths
    assert max(lengths) < TEXT["context_length"]


@pytest.mark.parametrize("method", [SLUG, replace(PRECONDITIONED, name="uce", search_steps=10)])
def test_everything_runs_in_half_precision(tiny: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
    meter = Meter(precision="bf16")
    seen: list[torch.dtype] = []

    def job() -> None:
        pixels = tiny.preprocess(torch.as_tensor(inputs.forget_images))
        seen.append(tiny.net.encode_image(pixels).dtype)
        methods.unlearn(tiny, inputs, method)

    with restored(tiny.parameters, tiny.parameters):
        assert meter.seconds(job) > 0
    assert seen == [torch.bfloat16]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        Meter("cuda")


def test_full_size_models_get_less_on_a_cpu_than_on_a_gpu() -> None:
    cpu, cuda = limit.FULL_SIZE["cpu"], limit.FULL_SIZE["cuda"]
    assert cpu.keys() == cuda.keys() == {"ViT-B-32", "ViT-L-14"}
    assert all(cpu[name].sizes.retain < cuda[name].sizes.retain for name in cpu)


def test_what_is_allowed_follows_from_tensors_and_activations(
    printed: dict[str, Any], tiny: ClipModel
) -> None:
    for name, towers in (("default", {"text"}), ("full_front", {"text", "vision"})):
        memory = printed["models"]["ViT-B-32"]["memory"][name]
        n_bytes = sum(4 * c.n_params for c in tiny.candidates() if c.tower in towers)
        assert memory["candidate_tensors_mib"] == pytest.approx(n_bytes / 2**20)
        if memory["profiling_mib"] is not None:
            allowed = 2.2 * memory["candidate_tensors_mib"] + memory["micro_batch_activations_mib"]
            assert memory["allowed_mib"] == pytest.approx(allowed)


def test_measuring_leaves_the_model_as_it_was(tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path) -> None:
    # Otherwise the second round would measure a model that has forgotten already.
    before = {name: tensor.clone() for name, tensor in tiny.net.state_dict().items()}
    asked = {"default": SLUG, **OWN}
    jobs = limit._jobs(tiny, inputs, asked, tmp_path, lambda *told: None)
    assert set(jobs) == {"forget", "retain", "search", *asked, "cached"}
    limit.measure_rounds(tiny, jobs, 1, Meter(), lambda *told: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.net.state_dict().items())


def test_the_reference_models_sets_are_as_large_as_promised() -> None:
    sizes = limit.REAL.sizes
    assert sizes.forget >= 100
    assert sizes.retain >= 1000
    assert sizes.search >= 500


def test_what_is_known_of_the_retain_set_gives_the_same_directions(
    tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path
) -> None:
    # The file is of the set with the concept's own items, so this catches one that is not left out again.
    later = known_retain(tiny, inputs, PRECONDITIONED, tmp_path / "retain.safetensors")
    known = later().known_retain
    assert known is not None
    assert known.statistics.n_items == len(inputs.retain_images) + len(known.rows)
    assert len(known.rows) == len(inputs.retain_images) // 8
    (plain,) = methods.profile(tiny, inputs, PRECONDITIONED).directions.values()
    (cached,) = methods.profile(tiny, later(), PRECONDITIONED).directions.values()
    assert plain.keys() == cached.keys()
    for layer, direction in plain.items():
        torch.testing.assert_close(
            cached[layer], direction, rtol=1e-3, atol=1e-3 * float(direction.abs().max()), msg=layer
        )


def test_a_method_that_can_use_nothing_known_is_not_timed_with_it(
    tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="slug takes no retain statistics"):
        known_retain(tiny, inputs, Method(), tmp_path / "retain.safetensors")


def test_what_is_measured_with_known_statistics_takes_some() -> None:
    own = ALSO_MEASURED(limit.FULL_SIZE["cpu"]["ViT-B-32"], micro_batch=20)
    assert own["full_front"] == Method(micro_batch=20, retain_batch=40)
    assert methods.statistics(own["preconditioned"], 0) is not None
    assert methods.statistics(own["full_front"], 0) is None


def test_growth_sees_what_is_used_and_that_freed_memory_is_used_again() -> None:
    if growth(lambda: None) is None:
        pytest.skip("this kernel does not tell the peak of the resident size")
    sizes = []
    for _ in range(2):
        grown = growth(lambda: [torch.ones(1 << 16) for _ in range(256)])  # 64 MiB in pieces of 256 KiB
        assert grown is not None
        sizes.append(grown)
    assert all(60 < grown < 90 for grown in sizes)


def test_the_longest_operations_are_named_and_the_others_summed_up() -> None:
    factors = torch.randn(700, 700)
    few = torch.randn(8)

    def run() -> None:
        for _ in range(5):
            factors @ factors
        few.exp(), few.sin(), few.cos(), few.tan(), few.tanh(), few.sigmoid(), few.erf()

    found = hotspots(Meter(), run, seconds=1.0)
    assert found["busy"] is None, "a CPU is never idle while it works"
    *named, others = found["operations"]
    assert (named[0]["name"], named[0]["calls"]) == ("aten::mm", 5)
    assert others["name"] == "others"
    assert others["calls"] > 0, "there are more operations than are named"
    assert [each["seconds"] for each in named] == sorted((o["seconds"] for o in named), reverse=True)


def test_every_job_tells_its_hotspots(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    assert row["hotspots"].keys() == {*row["seconds"].keys() - {"limit"}, "preprocess"}
    for job, found in row["hotspots"].items():
        assert sum(each["seconds"] for each in found["operations"]) > 0, job


def test_of_a_gpu_kernels_count_and_neither_the_host_nor_what_spans_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def event(key: str, where: DeviceType, seconds: float, spans: bool = False) -> SimpleNamespace:
        taken = {"self_device_time_total": 1e6 * seconds, "self_cpu_time_total": 7e6}
        return SimpleNamespace(key=key, device_type=where, count=2, is_user_annotation=spans, **taken)

    events = [
        event("aten::mm", DeviceType.CPU, 0.0),
        event("relu", DeviceType.CUDA, 0.1),
        event("gemm", DeviceType.CUDA, 0.3),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 0.4, spans=True),
    ]
    watched = nullcontext(SimpleNamespace(key_averages=lambda: events))
    monkeypatch.setattr(bench.hotspots, "profile", lambda activities: watched)
    gpu: Any = SimpleNamespace(device="cuda", seconds=lambda run: run())
    found = hotspots(gpu, lambda: None, seconds=0.5)
    assert found["busy"] == pytest.approx(0.8)
    assert [(each["name"], each["seconds"]) for each in found["operations"]] == [
        ("gemm", pytest.approx(0.3)),
        ("relu", pytest.approx(0.1)),
        ("others", 0),
    ]
