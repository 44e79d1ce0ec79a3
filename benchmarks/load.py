"""How long control nets take to load and how much memory: ours, ComfyUI's loader, diffusers.

Writes nets of random weights once, loads each in a fresh process by each loader in turn, prints
medians and writes results/load.json; see README.md. Linux only, by /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "load.json"
HOST_TASK = "--in-host"
NETS = {"SD 1.5 fp32": ("SD15", "float32"), "SDXL fp16": ("SDXL", "float16")}
INSPECTIONS = 21
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
OURS, OURS_HOSTED, BUILT_IN = "cldm_core", "cldm_core in ComfyUI", "ComfyUI"
SINGLE, PRETRAINED = "diffusers from_single_file", "diffusers from_pretrained"

UNABLE = {("SDXL fp16", SINGLE)}
"""diffusers 0.42 finds no names for `label_emb`, so that it leaves SDXL's nets without weights."""


# Memory and pages, of this process.


def memory() -> dict[str, float]:
    """MB resident now and at most since `forget_peak`, of which private (anonymous)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    names = {"peak": "VmHWM", "resident": "VmRSS", "private": "RssAnon"}
    return {name: int(lines[key].split()[0]) / 1024 for name, key in names.items()}


def forget_peak() -> None:
    """Starts the measurement of the peak anew; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(load: Callable[[], Any]) -> dict[str, float]:
    """Seconds and MB of loading, and of then reading every weight once as computing does."""
    import torch

    forget_peak()
    before, started = memory(), time.perf_counter()
    net = load()
    loaded, after = time.perf_counter(), memory()
    with torch.no_grad():
        for parameter in net.parameters():
            # A sum of whole numbers reads every byte and makes no copy.
            parameter.view(-1).view(torch.int32).sum()
    done, read = time.perf_counter(), memory()
    return {
        "seconds": loaded - started,
        "seconds_read": done - started,
        "peak": after["peak"] - before["resident"],
        "private": after["private"] - before["private"],
        "peak_read": read["peak"] - before["resident"],
        "private_read": read["private"] - before["private"],
    }


# The loaders, each in a process of its own.


def load_ours(path: Path) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    from cldm_core import load_control

    return measure(lambda: load_control(path))


def load_single_file(path: Path) -> dict[str, float]:
    import diffusers
    import torch

    dtype = getattr(torch, NETS[path.stem][1])
    folder = str(path.with_suffix(""))
    load = diffusers.ControlNetModel.from_single_file
    return measure(lambda: load(str(path), config=folder, torch_dtype=dtype, local_files_only=True))


def load_pretrained(path: Path) -> dict[str, float]:
    import diffusers
    import torch

    dtype = getattr(torch, NETS[path.stem][1])
    load = diffusers.ControlNetModel.from_pretrained
    return measure(lambda: load(str(path.with_suffix("")), torch_dtype=dtype))


def load_in_host(path: Path, loader: str) -> dict[str, float]:
    """Inside a host that stands in the working directory; the CPU is chosen before it starts."""
    sys.path[0] = os.getcwd()
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True
    import comfy.controlnet

    if loader == BUILT_IN:
        return measure(lambda: comfy.controlnet.load_controlnet(str(path)).control_model)
    files = pack().nodes.host.files
    return measure(lambda: files.load_control(path).control.net)


def pack() -> Any:
    """This pack as a package, as the host imports it."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    name = "controlnet_cldm"
    spec = spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    import_module(f"{name}.nodes.host.files")
    return module


LOADERS: dict[str, Callable[[Path], dict[str, float]]] = {
    OURS: load_ours,
    SINGLE: load_single_file,
    PRETRAINED: load_pretrained,
    OURS_HOSTED: lambda path: load_in_host(path, OURS_HOSTED),
    BUILT_IN: lambda path: load_in_host(path, BUILT_IN),
}


def inspect_header(path: Path) -> dict[str, float]:
    """Milliseconds of reading what a file is from its header, the first time and the median."""
    sys.path.insert(0, str(ROOT))
    from cldm_core import inspect_checkpoint

    times = []
    for _ in range(INSPECTIONS):
        started = time.perf_counter()
        inspect_checkpoint(path)
        times.append(1000 * (time.perf_counter() - started))
    return {"first": times[0], "median": statistics.median(times)}


# The files.


def write_nets(folder: Path, names: list[str], small: bool) -> dict[str, Path]:
    """A file in the original's layout for each net, and beside it diffusers' folder of the same."""
    sys.path.insert(0, str(ROOT))
    import torch
    from safetensors.torch import save_file

    import cldm_core
    from cldm_core.checkpoint.keymap import to_diffusers

    paths = {}
    for name in names:
        family, dtype = NETS[name]
        config = cldm_core.ControlNetConfig(cldm_core.TINY if small else getattr(cldm_core, family))
        with torch.device("meta"):
            shapes = cldm_core.ControlNet(config).state_dict()
        state = {k: torch.randn(v.shape).to(getattr(torch, dtype)) / 16 for k, v in shapes.items()}
        paths[name] = path = folder / f"{name}.safetensors"
        save_file(state, path)
        beside = path.with_suffix("")
        beside.mkdir()
        save_file(to_diffusers(state), beside / "diffusion_pytorch_model.safetensors")
        (beside / "config.json").write_text(json.dumps(diffusers_config(config.unet)))
    return paths


def diffusers_config(unet: Any) -> dict[str, Any]:
    """diffusers' options for the published families."""
    levels = range(len(unet.channel_mult))
    depths = [unet.transformer_depth[unet.num_res_blocks[0] * level] for level in levels]
    blocks = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    widths = [unet.model_channels * mult for mult in unet.channel_mult]
    vector = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": unet.adm_in_channels,
    }
    return {
        "_class_name": "ControlNetModel",
        "block_out_channels": widths,
        "down_block_types": blocks,
        "layers_per_block": unet.num_res_blocks[0],
        "cross_attention_dim": unet.context_dim,
        "attention_head_dim": 8 if unet.num_heads == 8 else [width // 64 for width in widths],
        "use_linear_projection": unet.use_linear_in_transformer,
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        **(vector if unet.adm_in_channels else {}),
    }


def write_header(folder: Path) -> Path:
    """The file of an SDXL net without its numbers: a whole header, and a hole behind it."""
    sys.path.insert(0, str(ROOT))
    import torch

    import cldm_core

    with torch.device("meta"):
        state = cldm_core.ControlNet(cldm_core.ControlNetConfig(cldm_core.SDXL)).state_dict()
    header, end = {}, 0
    for key, value in state.items():
        span = [end, end := end + 2 * value.numel()]
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    path = folder / "header.safetensors"
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)
    return path


# The runs.


def run(python: str, path: Path, loader: str, folder: str, env: dict[str, str]) -> Any:
    """One loading in a process of its own, whose last line is the record."""
    command = [python, str(Path(__file__).resolve()), HOST_TASK, loader, str(path)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **OFFLINE, **env},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{loader} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def warm(path: Path) -> None:
    """Reads the files once, so that all loaders find them in the page cache."""
    for file in (path, path.with_suffix("") / "diffusion_pytorch_model.safetensors"):
        with open(file, "rb") as handle:
            while handle.read(1 << 24):
                pass


def loaders_of(args: argparse.Namespace) -> dict[str, tuple[str, str, str, dict[str, str]]]:
    """What is compared: by name, its loader, Python, working directory and environment."""
    compared: dict[str, tuple[str, str, str, dict[str, str]]] = {}
    for name in (OURS, SINGLE, PRETRAINED):
        compared[name] = (name, sys.executable, ".", {})
    for root in args.host:
        version = (Path(root) / "comfyui_version.py").read_text(encoding="utf-8")
        number = version.split('"')[1]
        env = {"PYTHONPATH": args.standins} if args.standins else {}
        for name in (OURS_HOSTED, BUILT_IN):
            compared[f"{name} {number}"] = (name, args.host_python or sys.executable, root, env)
    return compared


def summary(records: list[dict[str, float]], size: float) -> dict[str, Any]:
    """Medians and extremes; memory as multiples of the file too."""
    times = [record["seconds"] for record in records]
    out: dict[str, Any] = {"min": round(min(times), 3), "max": round(max(times), 3)}
    for key in records[0]:
        out[key] = round(statistics.median(record[key] for record in records), 3)
    out["peak_by_file"] = round(out["peak"] / size, 3)
    out["peak_read_by_file"] = round(out["peak_read"] / size, 3)
    return out


def table(name: str, size: float, rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"\n{name}, {size:.0f} MB",
        f"{'':30}{'seconds (least-most)':>24}{'peak MB':>10}{'x file':>8}{'private':>9}"
        f"{'all read: s':>13}{'peak x':>8}{'private':>9}",
    ]
    for loader, row in rows.items():
        spread = f"{row['seconds']:.3f} ({row['min']:.3f}-{row['max']:.3f})"
        lines.append(
            f"{loader:30}{spread:>24}{row['peak']:10.0f}{row['peak_by_file']:8.2f}"
            f"{row['private']:9.0f}{row['seconds_read']:13.3f}{row['peak_read_by_file']:8.2f}"
            f"{row['private_read']:9.0f}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "page_cache": "warm",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", action="append", default=[], help="a ComfyUI checkout")
    parser.add_argument("--host-python", help="the Python that runs it; default: this one")
    parser.add_argument("--standins", help="a folder of modules that the host lacks")
    parser.add_argument("--pairs", type=int, default=5, help="loadings by each loader")
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--small", action="store_true", help="tiny nets, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    compared = loaders_of(args)
    result: dict[str, Any] = {"machine": machine(), "pairs": args.pairs, "nets": {}}
    with tempfile.TemporaryDirectory() as name:
        header = run(sys.executable, write_header(Path(name)), "inspect", ".", {})
        first, median = header["first"], header["median"]
        print(f"inspect, a header of SDXL: first {first:.1f} ms, median {median:.1f} ms")
        result["inspect_ms"] = header
        for net, path in write_nets(Path(name), args.net or list(NETS), args.small).items():
            warm(path)
            able = {k: v for k, v in compared.items() if (net, k) not in UNABLE}
            records: dict[str, list[dict[str, float]]] = {loader: [] for loader in able}
            # In turn, so that whatever else the machine does falls on all of them.
            for _ in range(args.pairs):
                for loader, (task, python, folder, env) in able.items():
                    records[loader].append(run(python, path, task, folder, env))
            size = path.stat().st_size / 2**20
            rows = {loader: summary(many, size) for loader, many in records.items()}
            result["nets"][net] = {"mib": round(size, 1), "loaders": rows}
            print(table(net, size, rows), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def task(loader: str, path: Path) -> None:
    """The part that runs in a process of its own."""
    act = inspect_header if loader == "inspect" else LOADERS[loader]
    print(f"\n{json.dumps(act(path))}")


if __name__ == "__main__":
    if sys.argv[1:2] == [HOST_TASK]:
        task(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
