"""The command line's verbs for files, end to end on small files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import load_control, load_unet
from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.checkpoint import inspect_checkpoint, write
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.checkpoint.write import stored_pooling
from controlnet_pack.cldm_core.inspect_command import table
from controlnet_pack.cldm_core.surgery import difference, merge_nets, transfer

from .bound_cases import SD_LIKE
from .bound_nets import base_of, other_base, trained
from .samples import LOADED, OTHERS, adapter, controlnet, prefixed
from .states import close, half, same

UNET = "model.diffusion_model."
LAST = ("parameters", "size")
VERBS = (
    "inspect", "convert", "add-control", "transfer", "difference", "difference make",
    "difference apply", "merge", "extract",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a net, its base as a single file, and another base; the current one."""
    monkeypatch.chdir(tmp_path)
    save_file(trained(SD_LIKE), "net.safetensors")
    whole = {**prefixed(UNET, base_of(SD_LIKE)), "first_stage_model.a": torch.ones(1)}
    save_file(whole, "base.safetensors")
    save_file(other_base(SD_LIKE), "other.safetensors")
    return tmp_path


def run(line):
    return main(line.split())


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def sources(path):
    return list(json.loads(metadata(path)["cldm_core.sources"]))


@pytest.mark.parametrize("verb", VERBS)
def test_help_reads_well(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(f"{verb} --help")
    told = capsys.readouterr().out
    assert told.startswith(f"usage: python -m cldm_core {verb}")
    assert "None" not in told


# inspect


def test_inspect_puts_every_file_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, made in LOADED.items():
        save_file(next(iter(made.values()))(), f"{name}.safetensors")
    assert run("inspect " + " ".join(f"{name}.safetensors" for name in LOADED)) == 0
    above, heading, *rows = capsys.readouterr().out.splitlines()[: 2 + len(LOADED)]
    assert above == "all: hint 3, dtype fp32"
    assert heading.split() == ["file", "kind", "base", "keys", "types", "pooling", *LAST]
    starts = [heading.index(name) for name in ("kind", "base", "keys", "types", "pooling")]
    for row, name in zip(rows, LOADED, strict=True):
        assert row.startswith(f"{name}.safetensors")
        assert all(row[start - 1] == " " and row[start] != " " for start in starts)
    assert {len(row) for row in rows} == {len(heading)}


def test_the_common_folder_and_equal_columns_are_left_out_of_the_table(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "100")
    paths = [tmp_path / "nets" / "a.safetensors", tmp_path / "nets" / "more" / "b.safetensors"]
    paths[1].parent.mkdir(parents=True)
    for path in paths:
        save_file(controlnet(), path)
    assert main(["inspect", *map(str, paths)]) == 0
    above, heading, *rows = capsys.readouterr().out.splitlines()
    assert above == (
        "all: kind ControlNet, base embedded model, keys cldm, hint 3, pooling unknown, dtype fp32"
    )
    assert heading.split() == ["file", *LAST]
    assert [row.split()[0] for row in rows] == ["a.safetensors", "more/b.safetensors"]


def test_a_narrow_terminal_gets_a_line_for_each_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(controlnet(), "net.safetensors")
    save_file(adapter(), "adapter.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"")
    monkeypatch.setenv("COLUMNS", "40")
    assert run("inspect net.safetensors adapter.safetensors damaged.safetensors") == 2
    assert capsys.readouterr().out.splitlines() == [
        f"net.safetensors: {inspect_checkpoint('net.safetensors')}",
        f"adapter.safetensors: {inspect_checkpoint('adapter.safetensors')}",
        "damaged.safetensors: unreadable",
    ]


def test_inspect_tells_what_does_not_fit(tmp_path, capsys):
    state = controlnet()
    del state["middle_block.0.in_layers.0.weight"]
    state |= {f"more.{i}": torch.ones(1) for i in range(12)}
    state["time_embed.0.bias"] = torch.ones(3)
    save_file(state, tmp_path / "net.safetensors")
    assert main(["inspect", str(tmp_path / "net.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "1 missing: middle_block.0.in_layers.0.weight\n" in told
    assert "12 unexpected: more.0, " in told
    assert told.count("more.") == 10
    assert "and 2 more" in told
    assert "1 misshapen: time_embed.0.bias is (3,) instead of " in told


def test_inspect_names_types_and_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(LOADED["union"]["8 types"](), "union.safetensors")
    save_file(OTHERS["flux"](), "flux.safetensors")
    assert run("inspect union.safetensors flux.safetensors") == 0
    told = capsys.readouterr().out
    assert "union.safetensors: control types openpose, depth, " in told
    assert "Load ControlNet Model" in told


def test_a_damaged_file_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 20)
    save_file(controlnet(), "net.safetensors")
    assert run("inspect damaged.safetensors nowhere.safetensors net.safetensors") == 2
    told = capsys.readouterr()
    assert "damaged.safetensors: damaged.safetensors can't be read as safetensors" in told.err
    assert "nowhere.safetensors: There is no file" in told.err
    assert "net.safetensors      ControlNet" in told.out
    assert "nowhere.safetensors  unreadable" in told.out


def test_an_unknown_file_is_shown_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(1)}, "a.safetensors")
    assert run("inspect a.safetensors") == 2
    assert "a.safetensors: Its keys start with a." in capsys.readouterr().out


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("a", "long name", "1"), ("longer", "b", "22")]
    assert table(rows, right=2) == "a       long name   1\nlonger          b  22\n"


def test_what_is_noted_of_the_hint_can_be_read(folder, capsys):
    run("convert net.safetensors noted.safetensors --hint lines")
    capsys.readouterr()
    assert run("inspect noted.safetensors net.safetensors") == 0
    assert "noted.safetensors: the hint must be: lines\n" in (told := capsys.readouterr().out)
    assert told.count("hint must be") == 1


# convert


def test_convert_writes_other_keys_and_another_type(folder, capsys):
    out = folder / "new" / "out.safetensors"
    line = "convert net.safetensors new/out.safetensors --layout diffusers --dtype fp16"
    assert run(f"{line} --pooling yes --hint RGB") == 0
    assert "diffusers keys, hint 3 channels, fp16" in capsys.readouterr().out
    assert same(load_file(out), half(to_diffusers(trained(SD_LIKE))))
    assert metadata(out)["cldm_core.hint"] == "RGB"
    assert sources(out) == ["source"]
    assert load_control(out).config.global_average_pooling


def test_convert_scales_and_prunes(folder, capsys):
    save_file({**trained(SD_LIKE), "model_ema.decay": torch.ones(1)}, "net.safetensors")
    line = "convert net.safetensors out.safetensors --dtype fp8_e4m3fn --scaled"
    assert run(f"{line} --no-prune") == 2
    assert "unexpected model_ema.decay" in capsys.readouterr().err
    assert run(line) == 0
    assert "fp8 (e4m3fn), scaled" in capsys.readouterr().out


def test_convert_takes_a_base_for_what_a_file_leaves_out(folder, capsys):
    file = difference(trained(SD_LIKE), base_of(SD_LIKE))
    del file["control_model.input_blocks.1.0.out_layers.3.weight"]
    save_file(file, "difference.safetensors")
    assert run("convert difference.safetensors out.safetensors") == 2
    assert "give the weights of the base model" in capsys.readouterr().err
    assert run("convert difference.safetensors out.safetensors --base base.safetensors") == 0
    assert same(load_file("out.safetensors"), file)


# surgery


@pytest.mark.parametrize("theirs", [False, True], ids=["single file", "diffusers"])
def test_added_control_changes_nothing_and_is_for_the_base(folder, theirs):
    if theirs:
        save_file(to_diffusers(base_of(SD_LIKE)), "base.safetensors")
    assert run("add-control base.safetensors out.safetensors --hint-channels 4") == 0
    net = load_control("out.safetensors")
    assert net.config.hint_channels == 4
    assert torch.equal(
        net.state_dict()["input_blocks.1.0.in_layers.2.weight"],
        base_of(SD_LIKE)["input_blocks.1.0.in_layers.2.weight"],
    )
    assert not net.zero_convs[0][0].weight.any()


def test_added_control_is_the_same_every_time(folder):
    run("add-control base.safetensors a.safetensors")
    run("add-control base.safetensors b.safetensors")
    run("add-control base.safetensors c.safetensors --seed 1")
    a, b, c = (load_file(f"{name}.safetensors") for name in "abc")
    assert same(a, b)
    assert {k for k in a if not torch.equal(a[k], c[k])} == {
        f"input_hint_block.{i}.{name}" for i in range(0, 14, 2) for name in ("weight", "bias")
    }


def test_the_whole_is_base_and_control_as_of_the_original_tool(folder):
    assert run("add-control base.safetensors out.safetensors --whole") == 0
    assert run("add-control base.safetensors net2.safetensors") == 0
    whole, base = load_file("out.safetensors"), load_file("base.safetensors")
    control = prefixed("control_model.", load_file("net2.safetensors"))
    assert same(whole, {**base, **control})
    assert load_unet("out.safetensors").config == load_unet("base.safetensors").config
    assert load_control("out.safetensors").config.hint_channels == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("add-control other.safetensors out.safetensors --whole", "no single-file checkpoint"),
        (
            "add-control net.safetensors out.safetensors",
            "BASE is net.safetensors, which holds a ControlNet: expected a base model there.",
        ),
        ("add-control adapter.safetensors out.safetensors", "BASE is adapter.safetensors"),
        ("add-control base.safetensors out.safetensors --hint-channels 0", "hint_channels"),
        ("merge net.safetensors net.safetensors out.safetensors --ratio 2", "The ratio is 2.0"),
        ("extract net.safetensors base.safetensors out.safetensors --rank 0", "The rank is 0"),
        (
            "transfer net.safetensors net.safetensors base.safetensors out.safetensors",
            "SOURCE is net.safetensors, which holds a ControlNet: expected a base model there.",
        ),
        (
            "difference make base.safetensors net.safetensors out.safetensors",
            "CONTROL is base.safetensors, which holds a base model and BASE is net.safetensors, "
            "which holds a ControlNet: swap them.",
        ),
        (
            "merge net.safetensors base.safetensors out.safetensors",
            "SECOND is base.safetensors, which holds a base model: expected a control net there.",
        ),
        ("difference apply net.safetensors base.safetensors out.safetensors", "a difference file"),
        ("convert base.safetensors out.safetensors", "base model"),
        ("convert net.safetensors out.safetensors --scaled", "choose fp8_e4m3fn"),
        ("convert net.safetensors out.ckpt", "let the name end in .safetensors"),
        ("convert nowhere.safetensors out.safetensors", "There is no file"),
        ("convert net.safetensors folder.safetensors", "is a folder"),
        ("convert net.safetensors net.safetensors/out.safetensors", "can't be written ("),
        ("convert adapter.safetensors out.safetensors --pooling yes", "never averaged"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(folder, capsys, line, sentence):
    (folder / "folder.safetensors").mkdir()
    save_file(adapter(), "adapter.safetensors")
    before = sorted(folder.rglob("*"))
    assert run(line) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("python -m cldm_core: ")
    assert sorted(folder.rglob("*")) == before


EACH_VERB = pytest.mark.parametrize(
    "line",
    [
        "convert net.safetensors",
        "add-control base.safetensors",
        "transfer net.safetensors base.safetensors other.safetensors",
        "difference make net.safetensors base.safetensors",
        "difference apply change.safetensors base.safetensors",
        "merge net.safetensors net.safetensors",
        "extract net.safetensors base.safetensors --rank 2",
    ],
)


@EACH_VERB
def test_a_file_is_replaced_only_by_force(folder, capsys, line):
    save_file(difference(trained(SD_LIKE), base_of(SD_LIKE)), "change.safetensors")
    (folder / "out.safetensors").write_bytes(b"mine")
    arguments = line.split()
    at = next((i for i, part in enumerate(arguments) if part.startswith("--")), len(arguments))
    arguments.insert(at, "out.safetensors")
    assert main(arguments) == 2
    assert "is there already: choose another name, or add --force" in capsys.readouterr().err
    assert (folder / "out.safetensors").read_bytes() == b"mine"
    assert main([*arguments, "--force"]) == 0
    load_control("out.safetensors")


@EACH_VERB
def test_an_error_while_writing_leaves_nothing(folder, capsys, monkeypatch, line):
    save_file(difference(trained(SD_LIKE), base_of(SD_LIKE)), "change.safetensors")

    def stops(state, file, texts):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(write, "save_file", stops)
    before = sorted(folder.iterdir())
    arguments = line.split()
    at = next((i for i, part in enumerate(arguments) if part.startswith("--")), len(arguments))
    arguments.insert(at, "out.safetensors")
    assert main(arguments) == 2
    assert "no space left on device" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_transfer_and_merge_write_what_the_functions_give(folder):
    net, old, new = trained(SD_LIKE), base_of(SD_LIKE), other_base(SD_LIKE)
    line = "transfer net.safetensors base.safetensors other.safetensors moved.safetensors"
    assert run(line) == 0
    moved = transfer(net, old, new)
    assert same(load_file("moved.safetensors"), moved)
    assert sources("moved.safetensors") == ["control", "source", "target"]
    line = "merge net.safetensors moved.safetensors mixed.safetensors --ratio 0.25"
    assert run(line) == 0
    assert same(load_file("mixed.safetensors"), merge_nets(net, moved, 0.25))
    assert sources("mixed.safetensors") == ["first", "second"]


def test_a_difference_goes_and_comes_back(folder):
    line = "difference make net.safetensors base.safetensors change.safetensors --dtype fp32"
    assert run(line) == 0
    assert run("difference apply change.safetensors base.safetensors back.safetensors") == 0
    assert close(load_file("back.safetensors"), trained(SD_LIKE), 1e-6)
    assert sources("change.safetensors") == ["control", "base"]
    assert sources("back.safetensors") == ["difference", "base"]


def test_extract_tells_the_error_and_keeps_the_notes(folder, capsys):
    run("convert net.safetensors noted.safetensors --pooling yes --hint RGB")
    capsys.readouterr()
    line = "extract noted.safetensors base.safetensors lora.safetensors --rank 8 --dtype fp16"
    assert run(line) == 0
    told = capsys.readouterr()
    assert "extracting: 100%" in told.err
    assert "layers of rank 8; lost are " in told.out
    assert "of what they have beyond the base" in told.out
    net = load_control("lora.safetensors", base=base_of(SD_LIKE))
    assert net.config.global_average_pooling
    assert metadata("lora.safetensors")["cldm_core.hint"] == "RGB"


def test_what_a_difference_leaves_out_is_told_by_its_metadata(folder):
    assert run("add-control base.safetensors fresh.safetensors") == 0
    assert run("difference make fresh.safetensors base.safetensors change.safetensors") == 0
    assert load_control("change.safetensors").config == load_control("fresh.safetensors").config


@EACH_VERB
@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3fn"])
def test_every_verb_writes_the_type_that_is_asked_for(folder, capsys, line, dtype):
    save_file(difference(trained(SD_LIKE), base_of(SD_LIKE)), "change.safetensors")
    words = line.split()
    at = next((i for i, part in enumerate(words) if part.startswith("--")), len(words))
    words.insert(at, "out.safetensors")
    assert main([*words, "--dtype", dtype]) == 0
    stored = load_file("out.safetensors")
    found = {v.dtype for k, v in stored.items() if k not in ("difference", "lora_controlnet")}
    bound = {"difference", "lora_controlnet"} & stored.keys()
    if dtype == "fp16" or bound:
        assert found == {torch.float16}
    else:
        assert found == {torch.float16, torch.float8_e4m3fn}
    told = capsys.readouterr().out
    assert ("It is in fp16: a Control" in told) == bool(bound and dtype != "fp16")


@EACH_VERB
def test_what_comes_in_8_bits_goes_out_in_fp16(folder, line):
    if line.startswith("convert"):
        return
    save_file(difference(trained(SD_LIKE), base_of(SD_LIKE)), "change.safetensors")
    for path in folder.glob("*.safetensors"):
        state = load_file(path)
        narrow = {k: v if v.ndim < 2 else v.to(torch.float8_e5m2) for k, v in state.items()}
        save_file(narrow, path)
    words = line.split()
    at = next((i for i, part in enumerate(words) if part.startswith("--")), len(words))
    words.insert(at, "out.safetensors")
    assert main(words) == 0
    stored = load_file("out.safetensors")
    assert {v.dtype for k, v in stored.items() if k not in ("difference", "lora_controlnet")} == {
        torch.float16
    }


@EACH_VERB
def test_no_verb_makes_up_the_pooling(folder, line):
    save_file(difference(trained(SD_LIKE), base_of(SD_LIKE)), "change.safetensors")
    words = line.split()
    at = next((i for i, part in enumerate(words) if part.startswith("--")), len(words))
    words.insert(at, "out.safetensors")
    assert main(words) == 0
    new = line.startswith("add-control")
    assert stored_pooling(read("out.safetensors")) == (False if new else None)


@pytest.mark.parametrize(
    "line",
    [
        "transfer a_shuffle.safetensors base.safetensors other.safetensors out.safetensors",
        "difference make a_shuffle.safetensors base.safetensors out.safetensors",
        "extract a_shuffle.safetensors base.safetensors out.safetensors --rank 2",
        "merge net.safetensors a_shuffle.safetensors out.safetensors",
    ],
)
def test_the_name_of_a_shuffle_net_is_heard_by_every_verb(folder, capsys, line):
    (folder / "a_shuffle.safetensors").write_bytes((folder / "net.safetensors").read_bytes())
    assert run(line) == 0
    assert stored_pooling(read("out.safetensors")) is True
    told = capsys.readouterr().out
    assert "Its name says that it is a shuffle net" in told or "Pooling is yes" in told


def test_merge_takes_what_is_told_of_pooling_and_hint(folder, capsys):
    run("convert net.safetensors a.safetensors --pooling yes --hint colours")
    run("convert net.safetensors b.safetensors --pooling no --hint lines")
    capsys.readouterr()
    assert run("merge a.safetensors b.safetensors out.safetensors") == 2
    assert "of a.safetensors are averaged over the picture" in capsys.readouterr().err
    assert run("merge a.safetensors b.safetensors out.safetensors --pooling no") == 0
    assert stored_pooling(read("out.safetensors")) is False
    assert "cldm_core.hint" not in metadata("out.safetensors")
    assert run("merge net.safetensors a.safetensors mixed.safetensors") == 0
    assert stored_pooling(read("mixed.safetensors")) is True
    assert "Pooling is yes, as a.safetensors says" in capsys.readouterr().out
    assert metadata("mixed.safetensors")["cldm_core.hint"] == "colours"


def test_added_control_keeps_the_licence_of_the_base(folder):
    save_file(
        base_of(SD_LIKE),
        "base.safetensors",
        {"modelspec.license": "openrail", "modelspec.title": "x"},
    )
    assert run("add-control base.safetensors out.safetensors") == 0
    found = metadata("out.safetensors")
    assert found["modelspec.license"] == "openrail"
    assert "modelspec.title" not in found


def test_a_whole_checkpoint_is_net_and_base_at_once(folder):
    run("add-control base.safetensors whole.safetensors --whole")
    assert run("difference make whole.safetensors whole.safetensors out.safetensors") == 0
